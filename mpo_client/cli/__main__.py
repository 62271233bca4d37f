from mpo_client.cli.main import main

main()
