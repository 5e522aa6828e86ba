"""Runs a script of bin/ once for each of many command lines, in one process that loads it once.

Reads JSON from stdin, ``{"script": path, "cases": [[argument, …], …]}``, and writes to stdout
``{"flags": [name, …], "cases": [{"code", "text", "written"}, …]}``: the flags that the script
defines; and of each case, run in a new directory, the exit code, what it printed, and the files
that it left. A file "notes" is there before.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags
from absl.testing import flagsaver


def run(script, main, arguments):
    sys.argv = [script, *arguments]
    text, code = io.StringIO(), None
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        with open("notes", "w") as file:
            file.write("mine")
        with flagsaver.flagsaver(), contextlib.redirect_stdout(text):
            with contextlib.redirect_stderr(text):
                try:
                    main()
                except SystemExit as end:
                    code = end.code
                except BaseException as error:
                    code, text = 1, io.StringIO(f"Traceback: {type(error).__name__}: {error}")
        written = sorted(os.path.join(d, f) for d, _, files in os.walk(".") for f in files)
        written = [path for path in written if path != os.path.join(".", "notes")]
    if isinstance(code, str):  # as the interpreter does
        code, text = 1, io.StringIO(f"{text.getvalue()}{code}\n")
    return {"code": code, "text": text.getvalue(), "written": written}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    sys.argv = [request["script"]]
    script = runpy.run_path(request["script"], run_name="script")
    of_script = flags.FLAGS.get_key_flags_for_module("script")
    call = script["command_line"].run

    def main():
        call("bin/script", script["main"])

    cases = [run(request["script"], main, case) for case in request["cases"]]
    answer = {"flags": sorted(flag.name for flag in of_script), "cases": cases}
    json.dump(answer, sys.__stdout__)
