"""``python -m hubguard`` is the ``hubguard`` command."""

import sys

from hubguard.cli import main

sys.exit(main())
