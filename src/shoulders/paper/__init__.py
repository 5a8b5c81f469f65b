"""What only the replication of the paper needs: its recipes, rivals and tables. Only the command line imports it."""
