# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page of `oneref demo`, in Gradio.

`answering` turns an upload and phrases into what the page shows, `examples` draws the example pictures, `page` lays
the page out, `server` serves it; `static/` holds what runs in the browser. A question is answered once; the browser
gets the picture and what is drawn on it in layers, so that showing and hiding them asks nobody.
"""

import os


# Read when these libraries are imported: nothing is reported to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
