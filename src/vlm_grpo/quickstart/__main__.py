"""`python -m vlm_grpo.quickstart` is `vlm-grpo quickstart`."""

import sys

from vlm_grpo.quickstart.demo import main

if __name__ == "__main__":
    sys.exit(main())
