"""Build a Bento in a process and a BentoML store of its own: `python -P components/bento_builder.py request.json`.

It imports nothing of ours, and its working directory holds only the files that go into the Bento: BentoML imports the
service from there, so a file missing in bentofile.yaml fails the build and not the first request. BENTOML_HOME is read
once a process, hence a new one: the user's store, where `hstuflow:latest` is the champion, stays untouched.

request.json: name, bento_version, model_version, labels, metadata, folders (whose files become the model's: checkpoint,
item map), export (folder to be written).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import bentoml
from bentoml.bentos import build_bentofile
from ruamel.yaml import YAML


def build(request: dict[str, Any]) -> None:
    """Store the checkpoint as a model, build ./bentofile.yaml around it, and export both as a folder."""
    name, labels = request["name"], request["labels"]
    model_tag = f"{name}:{request['model_version']}"
    with bentoml.models.create(model_tag, labels=labels, metadata=request["metadata"]) as model:
        # What validation judged before a refit is never served.
        without = shutil.ignore_patterns("selected.safetensors")
        for folder in request["folders"]:
            shutil.copytree(folder, model.path, dirs_exist_ok=True, ignore=without)
    _add_model(Path("bentofile.yaml"), model_tag)
    bento = build_bentofile("bentofile.yaml", name=name, version=request["bento_version"], labels=labels)
    bento.export(request["export"], output_format="folder")


def _add_model(bentofile: Path, tag: str) -> None:
    yaml = YAML(typ="safe")
    options = yaml.load(bentofile)
    options["models"] = [{"tag": tag, "alias": "checkpoint"}]  # components/service.py asks for this alias
    yaml.dump(options, bentofile)


if __name__ == "__main__":
    build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
