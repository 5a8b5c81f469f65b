"""`python -m shoulders`, also for `accelerate launch -m shoulders`."""

from shoulders.cli.main import main

main()
