"""``fttt view``: a local page over a folder of runs, while they run and after.

It shows what the report shows, by the same templates, plots and sentences; what is its own is that
it follows the files of the runs and sends what is new to the browser.
"""

from fttt.viewer.server import create_view, serve_view
from fttt.viewer.watcher import Watcher

__all__ = ["Watcher", "create_view", "serve_view"]
