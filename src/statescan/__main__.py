import sys

from statescan.cli import main

sys.exit(main())
