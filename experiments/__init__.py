"""Questions put to the method, each answered by a command whose output stands in docs/."""
