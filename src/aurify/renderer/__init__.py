"""Messages to tokens and back. No other folder knows chat templates.

`renderer` has the verbs, `template` finds out what a chat template does, `survey` whether it writes everything,
`folding` rewrites messages that it cannot write, and `foreign` keeps control tokens out of foreign text."""

from aurify.renderer.renderer import History, Renderer, TrainOn

__all__ = ["History", "Renderer", "TrainOn"]
