"""Does each step of the curriculum do what it claims, where the truth is known?"""
