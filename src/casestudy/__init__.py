"""casestudy explains why a decoder language model prefers one next token over another.

    import casestudy as cs

    model = cs.load("tiny")
    cs.study("full-stop-capitals", model)

Importing the package loads no torch: each name is fetched from its room when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from casestudy import drawing

__version__ = "0.1.0"

if TYPE_CHECKING:
    from casestudy.behaviour.answers import choose_answers
    from casestudy.behaviour.chat import chat
    from casestudy.behaviour.classes import ClassContrast, ClassSet, TokenClass
    from casestudy.behaviour.contrast import Contrast
    from casestudy.behaviour.files import load_behaviour
    from casestudy.behaviour.files_written import write_behaviour
    from casestudy.behaviour.presets import preset
    from casestudy.behaviour.prompts import Behaviour, Prompt, Role
    from casestudy.behaviour.roles import roles_of
    from casestudy.circuits.card import circuit_card
    from casestudy.circuits.edge_patching import patch_edges
    from casestudy.circuits.edge_scores import attribute_edges
    from casestudy.circuits.evaluate import evaluate_circuit
    from casestudy.circuits.graph import Circuit, Graph
    from casestudy.circuits.neuron_card import neuron_circuit
    from casestudy.circuits.neuron_circuit import NeuronChoices
    from casestudy.circuits.node_sets import NodeSet, evaluate_nodes
    from casestudy.circuits.paths import path_patch
    from casestudy.claims.check import check
    from casestudy.claims.compare import compare
    from casestudy.claims.emergence import emergence
    from casestudy.compat.transformer_lens.arrays import to_numpy
    from casestudy.engine.generation import generate
    from casestudy.measure.attention import attention_by_role, attention_pattern
    from casestudy.measure.attribution import head_attribution, neuron_attribution, top_neurons
    from casestudy.measure.attribution_patching import attribute_nodes
    from casestudy.measure.case_by_space import case_by_space
    from casestudy.measure.class_mass import class_mass
    from casestudy.measure.controls import controls
    from casestudy.measure.directions import DirectionChoices, find_direction
    from casestudy.measure.explain import explain_attention_score
    from casestudy.measure.explanation import explain
    from casestudy.measure.head_scores import head_profile
    from casestudy.measure.ledger import ledger
    from casestudy.measure.lens import lens, lens_by_role, logit_lens
    from casestudy.measure.part_card import part
    from casestudy.measure.patching import Pairs, ablate, patch
    from casestudy.measure.patching_prompts import patch_prompts
    from casestudy.measure.predictions import logit_difference, predictions, score_answer
    from casestudy.measure.subspaces import Spot, load_direction
    from casestudy.measure.whole_answers import whole_answers
    from casestudy.model.decoder import run
    from casestudy.model.edits import Edit
    from casestudy.model.loading import load
    from casestudy.model.model import Model
    from casestudy.model.sites import Keep, Site
    from casestudy.model.trace import Trace
    from casestudy.results.by_role import by_role
    from casestudy.results.result import Grid, Table
    from casestudy.show import plotly_figures as figures
    from casestudy.study.study import Study, open_study, study

_ROOMS = {
    "casestudy.model.loading": ("load",),
    "casestudy.model.model": ("Model",),
    "casestudy.model.decoder": ("run",),
    "casestudy.model.trace": ("Trace",),
    "casestudy.model.edits": ("Edit",),
    "casestudy.model.sites": ("Keep", "Site"),
    "casestudy.behaviour.classes": ("ClassContrast", "ClassSet", "TokenClass"),
    "casestudy.behaviour.files": ("load_behaviour",),
    "casestudy.behaviour.files_written": ("write_behaviour",),
    "casestudy.behaviour.prompts": ("Behaviour", "Prompt", "Role"),
    "casestudy.behaviour.roles": ("roles_of",),
    "casestudy.behaviour.presets": ("preset",),
    "casestudy.behaviour.chat": ("chat",),
    "casestudy.behaviour.answers": ("choose_answers",),
    "casestudy.behaviour.contrast": ("Contrast",),
    "casestudy.measure.predictions": ("logit_difference", "predictions", "score_answer"),
    "casestudy.engine.generation": ("generate",),
    "casestudy.results.by_role": ("by_role",),
    "casestudy.measure.case_by_space": ("case_by_space",),
    "casestudy.measure.class_mass": ("class_mass",),
    "casestudy.measure.controls": ("controls",),
    "casestudy.measure.ledger": ("ledger",),
    "casestudy.measure.lens": ("lens", "lens_by_role", "logit_lens"),
    "casestudy.measure.attribution": ("head_attribution", "neuron_attribution", "top_neurons"),
    "casestudy.measure.attribution_patching": ("attribute_nodes",),
    "casestudy.measure.attention": ("attention_by_role", "attention_pattern"),
    "casestudy.circuits.edge_patching": ("patch_edges",),
    "casestudy.circuits.edge_scores": ("attribute_edges",),
    "casestudy.circuits.graph": ("Circuit", "Graph"),
    "casestudy.measure.part_card": ("part",),
    "casestudy.measure.patching": ("Pairs", "ablate", "patch"),
    "casestudy.circuits.neuron_card": ("neuron_circuit",),
    "casestudy.circuits.neuron_circuit": ("NeuronChoices",),
    "casestudy.circuits.node_sets": ("NodeSet", "evaluate_nodes"),
    "casestudy.measure.patching_prompts": ("patch_prompts",),
    "casestudy.measure.whole_answers": ("whole_answers",),
    "casestudy.circuits.paths": ("path_patch",),
    "casestudy.circuits.card": ("circuit_card",),
    "casestudy.circuits.evaluate": ("evaluate_circuit",),
    "casestudy.measure.directions": ("DirectionChoices", "find_direction"),
    "casestudy.measure.subspaces": ("Spot", "load_direction"),
    "casestudy.measure.explain": ("explain_attention_score",),
    "casestudy.measure.explanation": ("explain",),
    "casestudy.measure.head_scores": ("head_profile",),
    "casestudy.results.result": ("Grid", "Table"),
    "casestudy.show": ("figures",),
    "casestudy.compat.transformer_lens.arrays": ("to_numpy",),
    "casestudy.claims.check": ("check",),
    "casestudy.claims.compare": ("compare",),
    "casestudy.claims.emergence": ("emergence",),
    "casestudy.study.study": ("Study", "open_study", "study"),
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Behaviour",
    "Circuit",
    "ClassContrast",
    "ClassSet",
    "Contrast",
    "DirectionChoices",
    "Edit",
    "Graph",
    "Grid",
    "Keep",
    "Model",
    "NeuronChoices",
    "NodeSet",
    "Pairs",
    "Prompt",
    "Role",
    "Site",
    "Spot",
    "Study",
    "Table",
    "TokenClass",
    "Trace",
    "ablate",
    "attention_by_role",
    "attention_pattern",
    "attribute_edges",
    "attribute_nodes",
    "by_role",
    "case_by_space",
    "chat",
    "check",
    "choose_answers",
    "circuit_card",
    "class_mass",
    "compare",
    "controls",
    "emergence",
    "evaluate_circuit",
    "evaluate_nodes",
    "explain",
    "explain_attention_score",
    "figures",
    "find_direction",
    "generate",
    "head_attribution",
    "head_profile",
    "ledger",
    "lens",
    "lens_by_role",
    "load",
    "load_behaviour",
    "load_direction",
    "logit_difference",
    "logit_lens",
    "neuron_attribution",
    "neuron_circuit",
    "open_study",
    "part",
    "patch",
    "patch_edges",
    "patch_prompts",
    "path_patch",
    "predictions",
    "preset",
    "roles_of",
    "run",
    "score_answer",
    "study",
    "to_numpy",
    "top_neurons",
    "whole_answers",
    "write_behaviour",
]


# results know nothing of figures: the front door, which knows every room, says who draws them
drawing.register_from("casestudy.show.drawers")


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'casestudy' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
