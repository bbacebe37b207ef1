"""The faults that scripts/mutants.py plants: a name, a file, a text that stands once in it, what takes its place, and
the test files that must notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]
    only: str = ""  # as pytest -k


def faults(path: str, tests: str, *edits: tuple[str, str, str], only: str = "") -> list[Fault]:
    return [Fault(name, f"src/aurify/{path}", old, new, tuple(tests.split()), only) for name, old, new in edits]


ALGORITHMS = [
    *faults(
        "algorithms/grpo.py",
        "algorithms/test_fixtures.py algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        ("entropy coefficient never applied", "losses = losses - self.entropy_coef * out.entropy", "pass"),
        ("correction weights not applied", "losses, metrics = trust * losses, metrics | told", "metrics |= told"),
        ("sign of the KL", "losses + self.kl_coef * divergence", "losses - self.kl_coef * divergence"),
        ("KL of the wrong side", "difference = logprobs - ref_logprobs", "difference = ref_logprobs - logprobs"),
        (
            "k1 and k2 clamped",
            "difference = logprobs - ref_logprobs",
            "difference = (logprobs - ref_logprobs).clamp(-20, 20)",
        ),
        ("kl_clamp ignored", "if clamp is None else estimate.clamp(max=clamp)", ""),
        ("dual clip for A > 0 too", "torch.where(advantages < 0, bounded, losses)", "bounded"),
        ("upper clip uses clip_low", "1 + self.clip_high) * advantages", "1 + self.clip_low) * advantages"),
        ("the better of clipped and unclipped", "torch.maximum(losses, clipped)", "torch.minimum(losses, clipped)"),
        ("ratio upside down", "(out.logprobs - old).clamp", "(old - out.logprobs).clamp"),
        (
            "sequence mean without lengths",
            "return batch.mean_by_unit(values).sum()",
            "return batch.sum_by_unit(batch.weights * values).sum()",
        ),
        ("constant length ignored", "return weighted.sum() / constant_length", "return weighted.sum()"),
        (
            "clip shares of the wrong sign",
            '"loss/clip_low"] = ((clipped > losses) & (advantages < 0))',
            '"loss/clip_low"] = ((clipped > losses) & (advantages > 0))',
        ),
    ),
    *faults(
        "algorithms/entropy.py",
        "algorithms/test_fixtures_online.py",
        ("top_entropy keeps the certain", "a if e >= least else 0.0", "a if e <= least else 0.0"),
        ("top_entropy by datum", "over_ranks(own), reverse=True", "over_ranks(own)"),
        ("pushes away", "STEP if entropy < self.target else -STEP", "-STEP if entropy < self.target else STEP"),
        ("always active", "self.active = entropy <= self.target", "self.active = True"),
    ),
    *faults(
        "algorithms/estimators.py",
        "algorithms/test_fixtures.py algorithms/test_fixtures_online.py algorithms/test_fixtures_signs.py",
        ("deviation with divisor n", "for reward in valid) / (len(valid) - 1)", "for reward in valid) / len(valid)"),
        ("RLOO without n / (n - 1)", "value * num / max(1, num - 1)", "value"),
        (
            "whitening by answers",
            "math.fsum(reward * length for reward, length in pairs) / total",
            "math.fsum(reward for reward, length in pairs) / len(pairs)",
        ),
        (
            "batch scale of the group",
            '(whole if scale == "batch" else reward_deviation(group))',
            "reward_deviation(group)",
        ),
        (
            "None as 0 in the mean",
            "if reward is not None]\n    mean = math.fsum(valid) / len(valid)\n    return [0.0",
            "if reward is not None]\n    mean = math.fsum(valid) / len(rewards)\n    return [0.0",
        ),
        (
            "rounding instead of no spread",
            "    if not has_reward_spread(rewards):\n        return [0.0] * len(rewards)\n    valid",
            "    if not any(r is not None for r in rewards):\n        return [0.0] * len(rewards)\n    valid",
        ),
    ),
    *faults(
        "algorithms/correction.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        ("MIS without lower bound", "(ratio >= self.low) & (ratio <= self.high)", "ratio <= self.high"),
        ("MIS without upper bound", "(ratio >= self.low) & (ratio <= self.high)", "ratio >= self.low"),
        ("TIS without cap", "return ratio.clamp(max=self.high)", "return ratio"),
        ("drift of the policy before the update", "(old if now is None else now)", "old"),
        ("drift also for A > 0", "[batch.token_unit] & (batch.advantages < 0)", "[batch.token_unit]"),
        ("a guide's tokens corrected", "torch.where(sampled, old - batch.logprobs, 0.0)", "(old - batch.logprobs)"),
        (
            "means over a guide's tokens too",
            "batch.sum_by_unit(counted).clamp",
            "batch.sum_by_unit(batch.weights).clamp",
        ),
        ("geometric mask on the sum", "((mean.exp() >= self.low)", "((total.exp() >= self.low)"),
    ),
    *faults(
        "algorithms/gdpo.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        ("no final normalisation", "(v - mean) / scale for v", "v for v"),
        ("flat groups normalised", "0.0 if v is None or not any(row)", "0.0 if v is None"),
        ("None as 0", "[[t.rewards.get(name) for t", "[[t.rewards.get(name) or 0.0 for t"),
        ("rubric's weights ignored", "group.reward_weights.get(name, 1.0)", "1.0"),
    ),
    *faults(
        "algorithms/luffy.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_luffy.py",
        (
            "gamma ignored",
            "shape_probability(log_x, self.shape, self.gamma)",
            "shape_probability(log_x, self.shape, 0.1)",
        ),
        (
            "shape ignored",
            "shape_probability(log_x, self.shape, self.gamma)",
            'shape_probability(log_x, "fraction", self.gamma)',
        ),
        ("recorded log-probs ignored", 'if self.behaviour == "recorded" and', "if False and"),
        (
            "a guide's ratio is p",
            'torch.where(batch.written_by("guidance"), now, super().ratio_base(now, batch))',
            "super().ratio_base(now, batch)",
        ),
        ("sft_coef ignored", "self.sft_coef * out.logprobs if", "out.logprobs if"),
        ("clips whatever is asked", "if not self.clip_on_policy:", "if False:"),
        ("entropy of the guide too", 'own = batch.written_by("policy")', 'own = ~batch.written_by("replay")'),
        ("guide in the baseline of RL and SFT", 'if t.source != "guidance"]) for g in groups]', "]) for g in groups]"),
        (
            "guide's denominator",
            "scale[True] = count_units(data) * self.constant_length",
            "scale[True] = self.constant_length",
        ),
    ),
    *faults(
        "algorithms/exgrpo.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_luffy.py",
        (
            "replay_gamma ignored",
            "shape_probability(change, self.shape, self.replay_gamma)",
            "shape_probability(change, self.shape, 0.1)",
        ),
        ("replay without its past", "change = out.logprobs - batch.old_logprobs", "change = out.logprobs"),
    ),
    *faults(
        "algorithms/luffy.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_luffy.py",
        ("log clamped", "return log_x  #", "return log_x.clamp(-20, 20)  #"),
        ("power clamped below", "(gamma * log_x.clamp(max=MAX_LOG))", "(gamma * log_x.clamp(-MAX_LOG, MAX_LOG))"),
        ("fraction without gamma", "x / (x + gamma) if", "x / (x + 1) if"),
    ),
    *faults(
        "algorithms/covariance.py",
        "algorithms/test_fixtures_signs.py",
        ("means of nothing", "(a - mean_value) * (x - mean_gain) < least", "a * x < least"),
        (
            "the smallest covariances",
            "(a - mean_value) * (x - mean_gain) < least",
            "(a - mean_value) * (x - mean_gain) > least",
        ),
        ("sign of the penalty", "rows[k][t] -= kl_coef", "rows[k][t] += kl_coef"),
        ("a guide's tokens too", 'datum.source == "policy" and not', "not"),
    ),
    *faults(
        "algorithms/gspo.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        ("token form without detach", "mean = mean.detach() + out", "mean = mean + out"),
        (
            "sum instead of mean",
            "batch.mean_by_unit(change)[batch.token_unit]",
            "batch.sum_by_unit(batch.weights * change)[batch.token_unit]",
        ),
    ),
    *faults(
        "algorithms/cispo.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        ("ratio not detached", "capped = ratio.detach().clamp", "capped = ratio.clamp"),
        ("no cap", "ratio.detach().clamp(max=self.max_ratio)", "ratio.detach()"),
    ),
    *faults(
        "algorithms/sapo.py",
        "algorithms/test_fixtures_signs.py algorithms/test_fixtures_online.py",
        (
            "taus swapped",
            "self.tau_positive, self.tau_negative)\n        return",
            "self.tau_negative, self.tau_positive)\n        return",
        ),
        (
            "one tau for both",
            "self.tau_positive, self.tau_negative)\n        return",
            "self.tau_positive, self.tau_positive)\n        return",
        ),
    ),
    *faults(
        "algorithms/gmpo.py",
        "algorithms/test_fixtures_online.py",
        ("one clip for both signs", "change.clamp(min=-self.clip_low))", "change.clamp(max=self.clip_high))"),
        ("arithmetic instead of geometric", "-mean.exp() * batch", "-(1 + mean) * batch"),
    ),
    *faults(
        "algorithms/vespo.py",
        "algorithms/test_fixtures_online.py",
        ("weight with gradient", "ratio.detach().log()", "ratio.log()"),
        ("one hump for both signs", "torch.where(up, self.k_positive, self.k_negative)", "self.k_positive"),
    ),
    *faults(
        "algorithms/dapo.py",
        "algorithms/test_fixtures_online.py",
        ("penalty without floor", "max(-1.0, min(0.0,", "max(-9.0, min(0.0,"),
        ("penalty a buffer late", "self.max_length - self.buffer - length", "self.max_length - length"),
    ),
    *faults(
        "algorithms/reinforce_pp.py",
        "algorithms/test_fixtures_signs.py algorithms/test_reward_kl.py",
        ("flat groups pushed down", "row if has_reward_spread(g.rewards) else [0.0] * len(row)", "row"),
        ("a token pays for what came before", "for cost in reversed(rest)]", "for cost in rest]"),
    ),
    *faults("algorithms/rloo.py", "algorithms/test_reward_kl.py", ("the KL is a reward", "r - coef *", "r + coef *")),
    *faults(
        "algorithms/reward_kl.py",
        "algorithms/test_reward_kl.py",
        ("a guide pays", "if weight and not given", "if weight"),
    ),
    *faults(
        "algorithms/distillation.py",
        "algorithms/test_distillation.py algorithms/test_fixtures_online.py algorithms/test_fixtures_signs.py "
        "loops/test_online_faults.py",
        ("needs a reward", "needs_reward: ClassVar[bool] = False", "needs_reward: ClassVar[bool] = True"),
        ("sign of the reward", "return math.exp(log_ratio) - 1", "return 1 - math.exp(log_ratio)"),
        ("beta of the other side", "(1 - self.beta) * math.log", "self.beta * math.log"),
        ("advantages ignored", "return batch.advantages * divergence", "return divergence"),
    ),
    *faults(
        "algorithms/kto.py",
        "algorithms/test_fixtures_preferences.py algorithms/test_fixtures_signs.py",
        (
            "weights swapped",
            "self.desirable_weight, self.undesirable_weight)\n        return",
            "self.undesirable_weight, self.desirable_weight)\n        return",
        ),
        (
            "one weight for both",
            "self.desirable_weight, self.undesirable_weight)\n        return",
            "self.desirable_weight, self.desirable_weight)\n        return",
        ),
        (
            "divergence below 0",
            "return max(0.0, math.fsum(ratios) / len(ratios))",
            "return math.fsum(ratios) / len(ratios)",
        ),
        ("the completion of the same prompt", "if prompts[j] != prompt)", "if True)"),
        ("label ignored", "gain = batch.label * self.beta", "gain = self.beta"),
    ),
    *faults(
        "algorithms/dpo.py",
        "algorithms/test_fixtures_preferences.py",
        (
            "label smoothing ignored",
            "return -(1 - e) * F.logsigmoid(gap) - e * F.logsigmoid(-gap)",
            "return -F.logsigmoid(gap)",
        ),
        ("sums where means are meant", "if self.loss_type in PER_TOKEN:", "if False:"),
        (
            "reference ignored",
            "weights * (out.logprobs - batch.ref_logprobs)",
            "weights * out.logprobs - batch.ref_logprobs * 0 - 1",
        ),
        ("length_alpha ignored", "torch.where(index < shared[batch.sequence], 1.0, alpha)", "torch.ones_like(index)"),
    ),
    *faults(
        "algorithms/simpo.py",
        "algorithms/test_fixtures_preferences.py",
        ("no margin", "rejected + self.gamma", "rejected"),
    ),
    *faults(
        "algorithms/reward_model.py",
        "algorithms/test_fixtures.py algorithms/test_fixtures_preferences.py",
        ("margin ignored", "F.logsigmoid(gap - batch.margin.view(-1, 2)[:, 0])", "F.logsigmoid(gap)"),
        ("a tie counts as right", "(gap > 0).sum()", "(gap >= 0).sum()"),
    ),
]

LOOPS = [
    *faults(
        "loops/online.py",
        "loops/test_online_faults.py loops/test_online.py loops/test_sources.py",
        (
            "temperature of training",
            "engine.forward_backward(batch, algorithm, temperature=temperature)",
            "engine.forward_backward(batch, algorithm)",
        ),
        (
            "temperature of the old log-probs",
            "if datum.source in sources], temperature=temperature)",
            "if datum.source in sources])",
        ),
        (
            "temperature of the reference",
            "engine.logprobs(flat, reference=True, temperature=temperature)",
            "engine.logprobs(flat, reference=True)",
        ),
        (
            "temperature of the teacher",
            "engine.teacher.logprobs(flat, temperature=temperature)",
            "engine.teacher.logprobs(flat)",
        ),
        (
            "temperature of prepare",
            "prepared(algorithm, given, engine, temperature)",
            "prepared(algorithm, given, engine)",
        ),
        (
            "prepared not called",
            "batch = prepared(algorithm, given, engine, temperature)",
            "batch = list(given)",
        ),
        ("the controller's weight not used", "controller.apply(algorithm) if controller else algorithm", "algorithm"),
        ("keep_reference not called", "        engine.keep_reference()\n", "        pass\n"),
        (
            "one order for all epochs",
            "            generator.shuffle(order)\n",
            "            random.Random(seed).shuffle(order)\n",
        ),
        ("replay with log-probs of now", "else datum.logprobs\n        assert", "else next(known)\n        assert"),
        ("counts averaged", '(1 if name.startswith("ledger/") else len(results))', "len(results)"),
    ),
    *faults(
        "loops/online.py",
        "loops/test_online_faults.py loops/test_online.py loops/test_sources.py",
        (
            "flat groups never kept",
            'keep_flat = algorithm_hook(algorithm, "keeps_flat")(advantages)',
            "keep_flat = False",
        ),
        ("consistency filter off", "if stage.consistent_only:", "if False:"),
    ),
    *faults(
        "loops/online.py",
        "loops/test_online_faults.py loops/test_online.py loops/test_sources.py",
        ("masked answers trained", 'and not (trajectory.truncated and stage.truncated == "mask")', ""),
        ("answers without reward trained", "and (trajectory.reward is not None or not needs_reward)", ""),
        ("flat groups always kept", "(keep_flat or (", "(True or ("),
        (
            "rewards of weight 0 disagree",
            "distance = weight * (value - fmean(known))",
            "distance = value - fmean(known)",
        ),
    ),
    *faults(
        "loops/rollouts.py",
        "loops/test_online_faults.py loops/test_online.py loops/test_guidance.py loops/test_sources.py",
        (
            "rewards not combined",
            "        combine_rewards(group.trajectories, group.reward_weights, self.stage.combine_rewards)\n",
            "",
        ),
        (
            "penalty before combining",
            "        combine_rewards(group.trajectories, group.reward_weights, self.stage.combine_rewards)\n",
            '        for t in group.trajectories if self.stage.truncated == "penalise" else ():\n'
            "            penalise_truncated_answer(t, self.stage.truncation_penalty)\n"
            "        combine_rewards(group.trajectories, group.reward_weights, self.stage.combine_rewards)\n"
            "        return group\n",
        ),
        (
            "groups without weights",
            "group.reward_weights = {reward.name: reward.weight for reward in self.rubric.rewards}",
            "pass",
        ),
        (
            "seeds without the step",
            "derive_seed(self.seed, step, index, task.id, k)",
            "derive_seed(self.seed, index, task.id, k)",
        ),
        ("temperature of replay", "policy, temperature, seed)", "policy, 1.0, seed)"),
        ("a step that was stopped counts", "            self.tasks.rewind(taken)\n", "            pass\n"),
        ("dynamic sampling by advantage alone", 'if self.stage.dynamic_sampling_by == "accuracy":', "if False:"),
        ("dynamic sampling off", "range(1, self.stage.dynamic_sampling + 1)", "range(1, 1)"),
        (
            "replaced answers forgotten",
            "[Group(group.task, replaced) for group, replaced in played if replaced]",
            "[Group(group.task, replaced) for group, replaced in played if False]",
        ),
        (
            "success threshold of guidance lowered",
            "success = guidance.success if guidance",
            "success = 0.5 * guidance.success if guidance",
        ),
        ("recorded log-probs lost", "if trajectory is not None and given.logprobs is not None:", "if False:"),
    ),
    *faults(
        "loops/task_stream.py",
        "loops/test_replay.py loops/test_sources.py loops/test_online_faults.py loops/test_online.py",
        ("retired questions asked", "if task.id in avoid and", "if False and"),
    ),
    *faults(
        "loops/replay.py",
        "loops/test_replay.py loops/test_sources.py loops/test_online_faults.py",
        (
            "success threshold lowered",
            "results = [rubric.succeeded(t, self.options.success) for t in group.trajectories]",
            "results = [rubric.succeeded(t, 0.5 * self.options.success) for t in group.trajectories]",
        ),
        ("a fresh failure forgets", "not any((*own, *stored)) and stored:", "not any((*own, *stored)):"),
        ("nothing retires", "            self.retired.add(name)\n", "            pass\n"),
        ("the least sure trajectory", "min(entries, key=lambda key", "max(entries, key=lambda key"),
        ("the newest goes first", "self.remove(question.entries[0])", "self.remove(question.entries[-1])"),
        ("buckets all alike", "[max(weights[k], 1e-300) for k in buckets]", "[1.0 for k in buckets]"),
        ("sums instead of means", "return fmean([value for value", "return sum([value for value"),
        ("starts at once", "self.started = self.started or rate > self.options.start", "self.started = True"),
        ("keeps truncated ones", ' == "policy" and not trajectory.truncated:', ' == "policy":'),
        ("spread ignored", 'if self.options.buckets == "successes":', "if True:"),
        ("old penalty comes along", "if name != TRUNCATED}", "}"),
        ("share rounded down", "int(share * num_prompts + 1e-9)", "int(share * num_prompts)"),
    ),
    *faults(
        "loops/guidance.py",
        "loops/test_guidance.py loops/test_online_faults.py",
        ("linear ignores low", "options.low + width * (1 - step / total)", "options.high * (1 - step / total)"),
        ("fixed ignores high", "(index / (num - 1) if num > 1 else 1.0)", "(index / num if num > 1 else 1.0)"),
        ("log-probs of the whole trace", "list(recorded[:length])", "list(recorded)"),
    ),
    *faults(
        "loops/ledger.py",
        "loops/test_online_faults.py loops/test_guidance.py loops/test_online.py",
        (
            "a guide's metrics over all tokens",
            '("guidance", "replay", "sampler", "entropy")',
            '("replay", "sampler", "entropy")',
        ),
        (
            "metrics of replay over all tokens",
            '("guidance", "replay", "sampler", "entropy")',
            '("guidance", "sampler", "entropy")',
        ),
        (
            "entropy with a guide's zeros",
            '("guidance", "replay", "sampler", "entropy")',
            '("guidance", "replay", "sampler")',
        ),
        ("discarded tokens not counted", "+ continued + wasted + failed)", "+ continued + failed)"),
        ("tokens of failures not counted", "+ continued + wasted + failed)", "+ continued + wasted)"),
        (
            "rewards of a guide in the mean",
            '[trajectory for trajectory in every if trajectory.source == "policy"]',
            "list(every)",
        ),
    ),
    *faults(
        "rewards/combine.py",
        "loops/test_online_faults.py loops/test_online.py",
        ("penalty is a bonus", "trajectory.reward -= cost", "trajectory.reward += cost"),
        (
            "penalty of the cut answer alone",
            "trajectory.rewards[TRUNCATED] = 0.0 - cost",
            "trajectory.rewards[TRUNCATED] = -cost or None",
        ),
    ),
    *faults(
        "rewards/combine.py",
        "rewards/test_combine.py",
        (
            "names of the first answer",
            "for t in scored for name, value in t.rewards.items() if value",
            "for t in scored[:1] for name, value in t.rewards.items() if value",
        ),
        ("weights ignored", "table) * [weights.get(name, 1.0) for name in names]", "table)"),
        ("sign of the component", "loadings if loadings.sum() >= 0 else -loadings", "loadings"),
        ("opposed rewards projected", "if (loadings < -EPSILON).any():", "if False:"),
        ("columns of weight 0", "names = [name for name in names if weights.get(name, 1.0)]", "pass"),
    ),
    *faults(
        "rewards/rubric.py",
        "loops/test_replay.py loops/test_guidance.py rewards/test_rubric.py",
        ("success threshold halved", "value >= threshold", "value >= threshold / 2"),
    ),
    *faults(
        "pipeline/check_online.py",
        "pipeline/test_idle_options.py",
        ("one completion a prompt", "if stage.completions_per_prompt < smallest:", "if False:"),
        ("idle options accepted", "    check_algorithm_options(algorithm, stage)\n", ""),
        ("no warning", '    for caution in algorithm_hook(algorithm, "cautions"):', "    for caution in ():"),
    ),
]

ENGINE = [
    *faults(
        "engine/optim.py",
        "loops/test_online_faults.py engine/test_engine.py",
        ("no gradient clipping", "if 0 < self.config.max_grad_norm < norm:", "if False:"),
        ("weight decay ignored", '"weight_decay": config.weight_decay}', '"weight_decay": 0.0}'),
        (
            "decay of vectors too",
            '{"params": others, "weight_decay": 0.0}',
            '{"params": others, "weight_decay": config.weight_decay}',
        ),
        ("a step that is not finite is taken", "if not math.isfinite(norm):", "if False:"),
        ("skips for ever", "if self.skipped > self.config.max_skipped_steps:", "if False:"),
        ("skips not in a row", "        self.skipped = 0\n        if 0", "        if 0"),
        ("skips forgotten", 'self.skipped = state.get("skipped", 0)', "pass"),
        (
            "warm-up a step late",
            "config.lr * (step + 1) / warmup",
            "config.lr * step / warmup",
        ),
        ("min_lr_ratio ignored", "(config.min_lr_ratio + (1 - config.min_lr_ratio) * falling)", "falling"),
        ("schedules ignored", "[\n        config.schedule\n    ]", '[\n        "constant"\n    ]'),
        ("lr of the first step for all", 'group["lr"] = lr', "pass"),
    ),
    *faults(
        "engine/engine.py",
        "engine/test_engine.py algorithms/test_fixtures_online.py loops/test_online_faults.py",
        ("denominator of sequences", "denominator = totals[algorithm.per]", 'denominator = totals["sequence"]'),
        ("a skipped step has a version", "if not self.optimizer.skipped:", "if True:"),
        ("entropies at temperature 1", "temperature, entropy=True).entropy", "1.0, entropy=True).entropy"),
        (
            "log-probs at temperature 1",
            "self._outputs(body, row, inputs, temperature).logprobs",
            "self._outputs(body, row, inputs, 1.0).logprobs",
        ),
        ("reference of now", "body = self._reference() if reference else self.body", "body = self.body"),
    ),
    *faults(
        "engine/logprobs.py",
        "engine/test_logprobs.py",
        ("gradient without temperature", "if self.head.scale != self.temperature:", "if False:"),
        (
            "entropy without gradient",
            "slope = (log_p + entropies).mul_(-grad_entropy)",
            "slope = (log_p + entropies).mul_(0)",
        ),
        ("sign of the entropy", "entropies[rows] = -(p * log_p).sum(1)", "entropies[rows] = (p * log_p).sum(1)"),
    ),
    *faults(
        "engine/offload.py",
        "engine/test_budget.py",
        ("another layer's input", "self.start(parked.earlier)", "parked.coming = parked.earlier.host.clone()"),
        ("layer inputs stay on the device", "Parked(host, tensor.device", "Parked(tensor, tensor.device"),
        only="layer_inputs",
    ),
    *faults(
        "data/traces.py",
        "cli/test_dry_run.py data/test_traces.py",
        ("traces are not judged", "traces.num_judged != check.max_judged", "False"),
        ("all traces are judged in a dry run", " and traces.num_judged != check.max_judged", ""),
    ),
    *faults(
        "engine/divergence.py",
        "engine/test_divergence.py",
        ("forward is reverse", "return kl(log_q, log_p)", "return kl(log_p, log_q)"),
        (
            "beta of the other side",
            "log_p + math.log1p(-beta), log_q + math.log(beta)",
            "log_p + math.log(beta), log_q + math.log1p(-beta)",
        ),
    ),
]

REWARDS = [
    *faults(
        "thoughts.py",
        "test_thoughts.py",
        ("unfinished thoughts are answers", "return None if awaited else END_OF_TURN", "return END_OF_TURN"),
        ("opened thoughts forgotten", "ALONE if opened else set()", "set()"),
        ("any closing tag will do", "elif name in (awaited or ALONE):", "elif True:"),
    ),
    *faults(
        "rewards/answers.py",
        "rewards/test_math_answers.py rewards/test_text_answers.py",
        (
            "an open box is an answer",
            '            return ""\n        content',
            "            return text[opening.end() :]\n        content",
        ),
        ("the last box alone", "        if not JOINT.fullmatch(text, end, start):", "        if True:"),
        ("reasons belong to the answer", 'SENTENCE.sub("", line) or line', "line"),
        ("answers letter by letter", "given if isinstance(given, list | tuple) else [given]", "given"),
    ),
    *faults(
        "rewards/notation.py",
        "rewards/test_math_answers.py",
        ("units never differ", "if unit and other and unit != other:", "if False:"),
        ("bases forgotten", "if (based := read_number_base(gold)) or read_number_base(answer):", "if False:"),
        ("letters forgotten", "    if letters is not None:", "    if False:"),
    ),
    *faults(
        "rewards/equality.py",
        "rewards/test_math_answers.py",
        ("false equations hold", "if not answer or is_false_answer(answer[0]) or", "if not answer or"),
        ("sets are not inequalities", "return None not in regions and regions[0] == regions[1]", "return False"),
    ),
    *faults(
        "rewards/choices.py",
        "rewards/test_text_answers.py",
        (
            "the word I is a letter",
            'return letter.isupper() and (letter not in "AI"',
            "return letter.isupper() and (True",
        ),
        ("A or B is A", "    if other and other[1] != letter", "    if False and other[1] != letter"),
    ),
    *faults(
        "rewards/function_calling.py",
        "rewards/test_function_calling.py",
        (
            "nulls count",
            "given = drop_null_arguments(made.arguments)",
            "given = made.arguments",
        ),
        (
            "an unfinished thought wants no call",
            "unfinished = take_answer(trajectory) is None and",
            "unfinished = False and",
        ),
    ),
    *faults(
        "tools/calls.py",
        "tools/test_calls.py",
        ("thoughts call", "answer = final_answer(text, opened)", "answer = text"),
        (
            "broken calls unseen",
            "        if entries is None:",
            "        if entries is None:\n            continue\n        if entries is None:",
        ),
    ),
    *faults(
        "tools/schema.py",
        "tools/test_schema.py",
        (
            "dialects unread",
            "name = text.lower()\n    if name not in TYPES:",
            'name = "any"\n    if name not in TYPES:',
        ),
        ("references followed", "return draft(found, registry=Registry())", "return draft(found)"),
        ("nulls stay", "for key, value in schema.items() if value is not None}", "for key, value in schema.items()}"),
    ),
    *faults(
        "rewards/trl.py",
        "rewards/test_trl_functions.py",
        ("chats for plain prompts", "    if task.plain and not any(played):", "    if False:"),
        ("no solution", '{"solution": task.answer, "answer"', '{"answer"'),
        ("texts are lists", "isinstance(given, str | bytes | Mapping) or", "isinstance(given, Mapping) or"),
    ),
]

FAULTS = [*ALGORITHMS, *LOOPS, *REWARDS, *ENGINE]
