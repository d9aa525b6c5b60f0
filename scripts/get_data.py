"""What is there, and how to get the rest: `python scripts/get_data.py data.root=/my/data`.

`python scripts/get_data.py datasets=[stare,hc18] accept_licence=true data.root=/my/data` fetches what is open.
"""

from medsam3.command_line import run_script
from medsam3.config import GetDataConfig, register_schemas
from medsam3.preparation.get_data import get_data

if __name__ == "__main__":
    register_schemas()
    run_script("get_data", GetDataConfig, get_data)
