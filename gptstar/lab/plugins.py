"""Our ways to run many: what `python train.py -m` hands to Hydra."""

from gptstar.lab.launcher import ProcessLauncher
from gptstar.lab.ray_launcher import RayLauncher
from gptstar.lab.search import SearchSweeper
from gptstar.lab.sweeper import StudySweeper

PLUGINS = (StudySweeper, SearchSweeper, ProcessLauncher, RayLauncher)
