"""html: renders a large table with a Chameleon page template."""

import os
import random
import sys

from chameleon import PageTemplate

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

ROWS, COLUMNS = 300, 50
PAGE = """
<html>
  <body>
    <h1>${title}</h1>
    <table>
      <tr tal:repeat="row rows">
        <td tal:repeat="cell row"><span tal:attributes="class 'c%d' % (cell % 7)" tal:content="cell" /></td>
      </tr>
    </table>
  </body>
</html>
"""


def init(seed):
    rng = random.Random(seed)
    rows = [[rng.randrange(1_000_000) for _ in range(COLUMNS)] for _ in range(ROWS)]
    return PageTemplate(PAGE), rows


def handle(state, n):
    template, rows = state
    start = n % ROWS
    html = template.render(title=f"Table <{n}>", rows=rows[start:] + rows[:start])
    return {"characters": len(html), "digest": medes_runtime.digest(html)}


medes_runtime.serve("html", init, handle)
