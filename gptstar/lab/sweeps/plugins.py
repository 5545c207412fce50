"""Our ways to run many: what `python train.py -m` hands to Hydra."""

from gptstar.lab.sweeps.launcher import ProcessLauncher
from gptstar.lab.sweeps.ray_launcher import RayLauncher
from gptstar.lab.sweeps.search import SearchSweeper
from gptstar.lab.sweeps.sweeper import StudySweeper

PLUGINS = (StudySweeper, SearchSweeper, ProcessLauncher, RayLauncher)
