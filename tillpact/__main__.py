"""`python -m tillpact` is `tillpact`."""

from tillpact.cli import main

main()
