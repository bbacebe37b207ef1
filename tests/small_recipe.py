"""A recipe of two short stages, for tests of commands."""

RECIPE = """
name: small
model: random:tiny
task: {name: largest_number, count: 2, maximum: 9, num_heldout: 12}
evaluation: {num_tasks: 4, sampling: {max_tokens: 2, temperature: 0.0}}
stages:
  sft: {method: sft, data: {demonstrations: 16}, steps: 2, batch_size: 4, optim: {lr: 3e-3}}
  grpo:
    method: grpo
    model: "@sft"
    lora: {rank: 2}
    steps: 1
    prompts_per_step: 2
    completions_per_prompt: 2
    sampling: {max_tokens: 2}
"""
