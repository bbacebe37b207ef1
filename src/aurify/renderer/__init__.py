"""Between messages and tokens. No other folder knows chat templates.

`renderer` has the verbs, `template` asks a chat template what it does, `folding` rewrites messages that a template
cannot write, and `foreign` keeps control tokens out of text that comes from data, tools and environments."""

from aurify.renderer.renderer import Renderer, TrainOn, outline

__all__ = ["Renderer", "TrainOn", "outline"]
