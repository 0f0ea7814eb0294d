import sys
from pathlib import Path

# tiny_task.py is imported by the tests, by the processes they kill, and by name as a method's part.
sys.path.insert(0, str(Path(__file__).parent))
