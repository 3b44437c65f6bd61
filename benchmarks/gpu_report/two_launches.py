"""A plugin of pytest under which native steps are two launches, also where one is possible."""

import gradops

gradops._C.allow_one_launch(False)
