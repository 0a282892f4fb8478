"""Deliberate faults: each is planted in a copy of the sources and must be caught by these tests.

    python -m parity_tests.faults            every fault, on both sides; prints the score
    python -m parity_tests.faults --only mask

A fault counts as caught when a test fails. Tests that cannot be collected count as an error of
this table, as does a fault whose text no longer stands in the source.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from parity_tests.warm import warm_pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("spec", "data", "experiment", "torch_impl", "jax_impl", "parity_tests")
COMMANDS = ("train.py", "predict.py", "export.py", "pyproject.toml")


class Fault(NamedTuple):
    """A text of one source file, and what stands there instead."""

    name: str
    side: str
    file: str
    old: str
    new: str

    @property
    def source(self) -> Path:
        return Path(f"{self.side}_impl") / self.file


def both(file: str, name: str, old: str, new: str) -> list[Fault]:
    """The same words on both sides."""
    return [Fault(name, side, file, old, new) for side in ("torch", "jax")]


def each(file: str, name: str, in_torch: tuple[str, str], in_jax: tuple[str, str]) -> list[Fault]:
    """The same fault in each framework's words."""
    return [Fault(name, "torch", file, *in_torch), Fault(name, "jax", file, *in_jax)]


HELD = "where(here, new, old)"
SHOWN = "[shown[0] for shown in states[-len(directions) :]]"
ZONED = 'zone_out(new, old, now.get(f"advances{n}"), carry.zoneout)'
READ = "dropout(read, carry.read, carry.read_rate)"
BELOW = "inputs if mask is None else dropout(inputs, mask, rate)"
STOP = '__import__("jax").lax.stop_gradient'

FAULTS: list[Fault] = [
    *both("cells.py", "gates in the order i f o g", "i, f, g, o = ", "i, f, o, g = "),
    *both("cells.py", "input and forget gate swapped", "i, f, g, o = ", "f, i, g, o = "),
    *both("cells.py", "forget gate + 1", "sigmoid(f) * c", "sigmoid(f + 1) * c"),
    *both("cells.py", "forget gate coupled to input gate", "sigmoid(f) * c", "sigmoid(-i) * c"),
    *both("cells.py", "candidate through sigmoid", "sigmoid(i) * tanh(g)", "sigmoid(i) * sigmoid(g)"),
    *both("cells.py", "no tanh around c", "sigmoid(o) * tanh(c)", "sigmoid(o) * c"),
    *both("cells.py", "output gate missing", "sigmoid(o) * tanh(c)", "tanh(c)"),
    *both("cells.py", "state returned as (c, h)", "LSTMState(h, c)\n", "LSTMState(c, h)\n"),
    *both("cells.py", "state taken as (c, h)", "h, c = state", "c, h = state"),
    *each(
        "cells.py",
        "recurrent weight of the RNN transposed",
        ("h @ self.weight_hh.T + self.bias_hh\n        return", "h @ self.weight_hh + self.bias_hh\n        return"),
        ('h @ params["weight_hh"].T + params["bias_hh"]\n    return', 'h @ params["weight_hh"] + params["bias_hh"]\n    return'),
    ),
    *each(
        "cells.py",
        "b_hh dropped",
        ("self.weight_hh.T + self.bias_hh", "self.weight_hh.T"),
        ('params["weight_hh"].T + params["bias_hh"]', 'params["weight_hh"].T'),
    ),
    *each(
        "cells.py",
        "b_ih used twice",
        ("self.weight_hh.T + self.bias_hh", "self.weight_hh.T + self.bias_ih"),
        ('params["weight_hh"].T + params["bias_hh"]', 'params["weight_hh"].T + params["bias_ih"]'),
    ),
    *each(
        "cells.py",
        "nonlinearity ignored",
        ('"relu": relu}', '"relu": tanh}'),
        ('"relu": relu}', '"relu": tanh}'),
    ),
    *each(
        "cells.py",
        "carry detached",
        ("h, c = state", "h, c = state[0].detach(), state[1]"),
        ("h, c = state", f"h, c = {STOP}(state[0]), state[1]"),
    ),
    *each(
        "cells.py",
        "float32 inside",
        ("+ sigmoid(i) * tanh(g)", "+ (sigmoid(i) * tanh(g)).float()"),
        ("+ sigmoid(i) * tanh(g)", '+ (sigmoid(i) * tanh(g)).astype("float32")'),
    ),
    *both("cells.py", "GRU's reset and update swapped", "r, z = sigmoid", "z, r = sigmoid"),
    *both("cells.py", "GRU's gates in the order z r n", "i_r, i_z, i_n = ", "i_z, i_r, i_n = "),
    *both("cells.py", "GRU's update inverted", "(1 - z) * n + z * h", "z * n + (1 - z) * h"),
    *both("cells.py", "GRU without reset", "h_n = r * h_n", "h_n = 1 * h_n"),
    *both("cells.py", "GRU's candidate through sigmoid", "n = tanh(i_n + h_n)", "n = sigmoid(i_n + h_n)"),
    *both("cells.py", "GRU's state not reset before the product", "(r * read) @", "read @"),
    *each(
        "cells.py",
        "GRU's reset before for after",
        ("if self.reset_after:", "if not self.reset_after:"),
        ("if reset_after:", "if not reset_after:"),
    ),
    *each(
        "cells.py",
        "GRU's candidate without hidden bias",
        (" + self.bias_hh[2 * H :]", ""),
        (' + params["bias_hh"][2 * H :]', ""),
    ),
    *both("cells.py", "GRU's product reads the state that is not dropped", "(r * read) @", "(r * h) @"),
    *both("cells.py", "GRU carries the dropped state", "(1 - z) * n + z * h", "(1 - z) * n + z * read"),
    *both("cells.py", "general gates in the order i f o g", "i, *forget, g, o = ", "i, *forget, o, g = "),
    *both("cells.py", "general gates in the order f i g o", "i, *forget, g, o = ", "*forget, i, g, o = "),
    *both("cells.py", "peephole of the input gate left out", "i = i + p_i * c", "i = i"),
    *both("cells.py", "peephole of the forget gate left out", "[f + p_f * c for", "[f for"),
    *both("cells.py", "peephole of the output gate left out", "o + p_o * c if peepholes", "o if peepholes"),
    *both("cells.py", "peepholes of i and o swapped", "p_i, *p_forget, p_o = ", "p_o, *p_forget, p_i = "),
    *both("cells.py", "peephole of i for the forget gate", "f + p_f * c", "f + p_i * c"),
    *both("cells.py", "output gate sees the old c", "o + p_o * c if", "o + p_o * state[1] if"),
    *both("cells.py", "coupled gate as i", "forget else 1 - i)", "forget else i)"),
    *both("cells.py", "forget gate not coupled", "forget else 1 - i)", "forget else 1 + 0 * i)"),
    *both("cells.py", "norm of the other product", "from_hidden = standardize(from_hidden)", "from_hidden = standardize(from_input)"),
    *both("cells.py", "product of h not normalised", "from_hidden = standardize(from_hidden)", "from_hidden = from_hidden"),
    *each(
        "cells.py",
        "norm of each gate by itself",
        ("standardize(from_input)", "standardize(from_input.unflatten(-1, (-1, c.shape[-1]))).flatten(-2)"),
        ("standardize(from_input)", "standardize(from_input.reshape(len(c), -1, c.shape[-1])).reshape(len(c), -1)"),
    ),
    *each(
        "cells.py",
        "gain of h's product left out",
        ("standardize(from_hidden) * self.gain_hh", "standardize(from_hidden)"),
        ('standardize(from_hidden) * params["gain_hh"]', "standardize(from_hidden)"),
    ),
    *each(
        "cells.py",
        "gain of the other product",
        ("standardize(from_input) * self.gain_ih", "standardize(from_input) * self.gain_hh"),
        ('standardize(from_input) * params["gain_ih"]', 'standardize(from_input) * params["gain_hh"]'),
    ),
    *each(
        "cells.py",
        "gain_c left out",
        ("standardize(c) * self.gain_c", "standardize(c)"),
        ('standardize(c) * params["gain_c"]', "standardize(c)"),
    ),
    *each("cells.py", "bias_c left out", (" + self.bias_c if", " if"), (' + params["bias_c"] if', " if")),
    *both("cells.py", "normalised c put into the state", "h = (o * tanh(inside))", "c, h = inside, (o * tanh(inside))"),
    *both("cells.py", "general cell without tanh around c", "o * tanh(inside)", "o * inside"),
    *each(
        "cells.py",
        "projection left out",
        ("h @ self.weight_hr.T if", "h[..., : len(self.weight_hr)] if"),
        ('h @ params["weight_hr"].T if', 'h[..., : len(params["weight_hr"])] if'),
    ),
    *each(
        "cells.py",
        "projection before the output gate",
        ("h @ self.weight_hr.T if", "tanh(inside) @ self.weight_hr.T if"),
        ('h @ params["weight_hr"].T if', 'tanh(inside) @ params["weight_hr"].T if'),
    ),
    *both("recurrent.py", "length one too long", "< lengths[:, None]", "<= lengths[:, None]"),
    *both("recurrent.py", "length one too short", "< lengths[:, None]", "< lengths[:, None] - 1"),
    *both("recurrent.py", "mask sense in the state", HELD, "where(here, old, new)"),
    *both("recurrent.py", "state not held past the end", HELD, "where(here, new, new)"),
    *each(
        "recurrent.py",
        "outputs past the end not zeroed",
        ("torch.where(here, part, 0.0)", "part"),
        ("jnp.where(here, part, 0.0)", "part"),
    ),
    *both("recurrent.py", "padding reaches the cell", "where(valid[..., None], inputs, 0.0)", "where(valid[..., None], inputs, inputs)"),
    *each(
        "recurrent.py",
        "reversed direction runs forward",
        ("reversed(times) if reverse else times", "times"),
        ("reverse=reverse, unroll", "reverse=False, unroll"),
    ),
    *each(
        "recurrent.py",
        "directions side by side in the wrong order",
        (f"{SHOWN}, dim=-1)", f"{SHOWN}[::-1], dim=-1)"),
        (f"{SHOWN}, axis=-1)", f"{SHOWN}[::-1], axis=-1)"),
    ),
    *both("recurrent.py", "first state ignored", "tuple(part[len(finals)] for", "tuple(0 * part[len(finals)] for"),
    *both("recurrent.py", "first state of another layer", "tuple(part[len(finals)] for", "tuple(part[0] for"),
    *both("recurrent.py", "last states in the wrong order", "zip(*finals, strict=True)", "zip(*finals[::-1], strict=True)"),
    *both("carry.py", "dropout not scaled", "where(keep, x / (1 - rate), 0.0)", "where(keep, x, 0.0)"),
    *both("carry.py", "dropout scaled by the rate", "x / (1 - rate)", "x / rate"),
    *both("carry.py", "dropout mask inverted", "where(keep, x", "where(~keep, x"),
    *both("recurrent.py", "dropout mask of another layer", 'keep.get(f"layer{layer - 1}")', 'keep.get("layer0" if layer else "none")'),
    *both("recurrent.py", "no dropout between layers", BELOW, "inputs"),
    *each(
        "recurrent.py",
        "starts from ones",
        ("inputs.new_zeros(", "inputs.new_ones("),
        ("return jnp.zeros(", "return jnp.ones("),
    ),
    *each(
        "recurrent.py",
        "gradient stops between layers",
        (f"{SHOWN}, dim=-1)", f"{SHOWN}, dim=-1).detach()"),
        (f"jnp.concatenate({SHOWN}, axis=-1)", f"{STOP}(jnp.concatenate({SHOWN}, axis=-1))"),
    ),
    *each(
        "recurrent.py",
        "plain cell whatever the weights say",
        ("LSTMCell if plain else GeneralLSTMCell", "LSTMCell"),
        ("lstm_cell if plain else general_lstm_cell", "lstm_cell"),
    ),
    *both("recurrent.py", "resets not shifted for the reversed direction", "if reverse and resets is not None:", "if False:"),
    *each(
        "recurrent.py",
        "first step's reset ends the reversed direction's first state",
        ("torch.zeros_like(resets[:, :1])", "resets[:, :1]"),
        ("jnp.zeros_like(resets[:, :1])", "resets[:, :1]"),
    ),
    *both("recurrent.py", "zoneout mask of the first layer for all", 'f"zoneout_{part}_{end}"', 'f"zoneout_{part}_l0"'),
    *both("recurrent.py", "recurrent dropout mask of the first layer for all", 'f"recurrent_{end}"', '"recurrent_l0"'),
    *both("recurrent.py", "recurrent dropout at the rate of zoneout", "options.recurrent_dropout, advances", "options.zoneout, advances"),
    *both("recurrent.py", "no input dropout", 'if "input" in keep:', "if False:"),
    *both("recurrent.py", "input dropout not scaled", 'keep["input"], options.input_dropout)', 'keep["input"], 0.0)'),
    *both(
        "recurrent.py",
        "input dropout after the first layer",
        f"below = {BELOW}",
        f'below = {BELOW}\n        below = dropout(below, keep["input"], options.input_dropout) if layer and "input" in keep else below',
    ),
    *both("recurrent.py", "no residual", "if layer and options.residual", "if False"),
    *both("recurrent.py", "residual around the first layer where it fits", "if layer and options.residual", "if options.residual and inputs.shape == outputs.shape"),
    *both("recurrent.py", "residual after dropout", "outputs + inputs if layer", "outputs + below if layer"),
    *both("recurrent.py", "time not cut into chunks", "if options.truncated_bptt_steps is not None:", "if False:"),
    *both("carry.py", "zoneout inverted", "where(advances, new, old)", "where(advances, old, new)"),
    *both("carry.py", "state that is held is zero", "where(advances, new, old)", "where(advances, new, 0.0)"),
    *both("carry.py", "rates of the expected value swapped", "rate * old + (1 - rate) * new", "rate * new + (1 - rate) * old"),
    *both("carry.py", "zoneout ignored", "if carry.zoneout:", "if False:"),
    *both("carry.py", "zoneout of h alone", ZONED, f"new if n else {ZONED}"),
    *both("carry.py", "zoneout of c by the mask of h", 'now.get(f"advances{n}")', 'now.get("advances0")'),
    *both("carry.py", "recurrent dropout ignored", "if carry.read is not None:", "if False:"),
    *both("carry.py", "recurrent dropout not scaled", READ, "dropout(read, carry.read, 0.0)"),
    *both("carry.py", "recurrent dropout anew at each step", READ, 'dropout(read, carry.read ^ (now["x"][:, :1] > 0), carry.read_rate)'),
    *both("carry.py", "dropped h carried on", "state, read)\n", "(read, *state[1:]), read)\n"),
    *both("carry.py", "resets ignored", 'if "resets" in now:', "if False:"),
    *each(
        "carry.py",
        "reset of h alone",
        ('tuple(torch.where(now["resets"][:, None], 0.0, part) for part in state)', '(torch.where(now["resets"][:, None], 0.0, state[0]), *state[1:])'),
        ('tuple(jnp.where(now["resets"][:, None], 0.0, part) for part in state)', '(jnp.where(now["resets"][:, None], 0.0, state[0]), *state[1:])'),
    ),
    *both("carry.py", "kernels taken for a layer with zoneout", " and not self.zoneout", ""),
    *both("carry.py", "kernels taken for a layer with resets", "self.resets is None and ", ""),
    *both("carry.py", "kernels taken for a layer with recurrent dropout", "self.read is None and ", ""),
    *each(
        "carry.py",
        "state not cut between chunks",
        ("if cut and found else state", "if False else state"),
        ("if cut:", "if False:"),
    ),
    *each(
        "carry.py",
        "first chunk cut from the first state",
        ("if cut and found else state", "if cut else state"),
        ("if reverse else [ends, after]", "if reverse else [after, ends]"),
    ),
    Fault("chunk in reverse cut at its far end", "jax", "carry.py", "goes_on[:, -1 if reverse else 0, None]", "goes_on[:, 0, None]"),
    Fault("chunk in reverse cut by its own steps", "torch", "carry.py", "start + steps if reverse else start", "start"),
    *each(
        "carry.py",
        "padding cut from what it carries",
        ("torch.where(goes_on, part.detach(), part)", "part.detach()"),
        ("jnp.where(first, lax.stop_gradient(s), s)", "lax.stop_gradient(s)"),
    ),
    *each(
        "carry.py",
        "chunks in forward order in reverse",
        ("for start in reversed(starts) if reverse else starts", "for start in starts"),
        ("for size in (1, 0) if reverse else (0, 1)", "for size in (0, 1)"),
    ),
    Fault("whole chunks in forward order in reverse", "jax", "carry.py", "partial(lax.scan, piece, reverse=reverse)", "partial(lax.scan, piece)"),
    Fault("outputs of chunks left in reverse", "torch", "carry.py", "reversed(found) if reverse else found", "found"),
    *each(
        "carry.py",
        "zoneout masks of the first chunk for all",
        ("tuple(mask[:, here] for mask", "tuple(mask[:, : inputs[:, here].shape[1]] for mask"),
        ("advances, goes_on = other_axis_first(now)", "advances, goes_on = other_axis_first(now)\n            advances = jax.tree.map(lambda mask: mask[:, : inputs.shape[1]], carry.advances)"),
    ),
    *each(
        "carry.py",
        "resets lost in chunks",
        ("None if carry.resets is None else carry.resets[:, here]", "None"),
        ("_replace(resets=resets,", "_replace(resets=None,"),
    ),
    *each(
        "carry.py",
        "nothing computed again",
        ("if recompute:", "if False:"),
        ("jax.checkpoint(piece) if recompute else piece", "piece"),
    ),
    Fault("sums of chunks summed", "jax", "carry.py", "        sums = lax.optimization_barrier(sums)", "        sums = sums"),
    Fault("sums carried in vain", "jax", "carry.py", "read_from(weights, sums)\n", "weights\n"),
    Fault("steps in one order", "jax", "carry.py", "given, reverse=reverse, unroll", "given, unroll"),
    Fault("fast layers recomputed as the readable ones are", "jax", "recurrent.py", 'vars(layers).get("recomputed", recomputed)', "recomputed"),
    Fault("weights of a fast layer in one product", "jax", "fast.py", "chunks = split_time((inputs, d_gates, h), steps)", "chunks = split_time((inputs, d_gates, h), len(inputs))"),
    Fault("chunks summed in forward order", "jax", "fast.py", "over_chunks(add, sums, chunks, not reverse)", "over_chunks(add, sums, chunks, reverse)"),
    Fault("fast states kept all the same", "jax", "fast.py", "return partial(unroll_cell, recompute=True)", "return unroll_cell"),
    Fault("cuDNN asked step by step", "jax", "fast.py", "if unroll_cell is unroll_lstm_by_cudnn:", "if False:"),
    Fault("sums over chunks in the inputs' type", "jax", "fast.py", "jnp.promote_types(inputs.dtype, jnp.float32)", "inputs.dtype"),
    *both("attention.py", "mask sense of the scores", "where(valid, scores,", "where(~valid, scores,"),
    *both("attention.py", "scores not masked", "where(valid, scores,", "where(valid, scores, scores) + 0 * ("),
    *both("attention.py", "no tanh in the score", "tanh(from_query[:, None] + from_keys)", "(from_query[:, None] + from_keys)"),
    *both("attention.py", "query left out of the score", "from_query[:, None] + from_keys", "from_keys"),
    *both("attention.py", "padded keys not ignored", "where(valid[..., None], keys, 0.0)", "where(valid[..., None], keys, keys)"),
    *each(
        "attention.py",
        "softmax over the batch",
        ("softmax(scores, dim=-1)", "softmax(scores, dim=0)"),
        ("softmax(scores, axis=-1)", "softmax(scores, axis=0)"),
    ),
    *each(
        "attention.py",
        "gradient stops at the weights",
        ("(weights[:, None] @ keys)", "(weights.detach()[:, None] @ keys)"),
        ("(weights[:, None] @ keys)", f"({STOP}(weights)[:, None] @ keys)"),
    ),
    *each(
        "attention.py",
        "W_a and U_a swapped",
        ("query @ self.W_a.T", "query @ self.U_a.T"),
        ('query @ params["W_a"].T', 'query @ params["U_a"].T'),
    ),
    *both("models.py", "final state of the first layer", "part[-config.directions :]", "part[: config.directions]"),
    *both("models.py", "final states in the wrong order", "list(part[-config.directions :])", "list(part[-config.directions :])[::-1]"),
    *both("models.py", "context and query swapped", "[context, query]", "[query, context]"),
    *both("models.py", "attention over the padding", "query, outputs, valid)", "query, outputs, None)"),
    *both("models.py", "no dropout before the head", 'if keep and "head" in keep:', "if False:"),
    *each(
        "models.py",
        "no masks for the layers",
        ("config.cell)(inputs, lengths, state, keep)", "config.cell)(inputs, lengths, state, None)"),
        ("[config.cell], inputs, lengths, state, keep)", "[config.cell], inputs, lengths, state, None)"),
    ),
    *each(
        "models.py",
        "backward final state read at the last step",
        ("query = last_layer(self.config, outputs, state, lengths)", "query = outputs[:, -1]"),
        ("query = last_layer(config, outputs, state, lengths)", "query = outputs[:, -1]"),
    ),
    *each(
        "models.py",
        "bias of the head dropped",
        ("@ head.weight.T + head.bias", "@ head.weight.T"),
        ('@ head["weight"].T + head["bias"]', '@ head["weight"].T'),
    ),
    *each(
        "models.py",
        "first state not passed on",
        ("config.cell)(inputs, lengths, state, keep)", "config.cell)(inputs, lengths, None, keep)"),
        ("[config.cell], inputs, lengths, state, keep)", "[config.cell], inputs, lengths, None, keep)"),
    ),
    *both("models.py", "residual model reads the state alone", "if config.residual:", "if False:"),
    *each(
        "models.py",
        "every step predicted by the last state",
        ("if self.config.every_step:\n            return Output(read_steps(self.config, self.head, outputs,", "if self.config.every_step:\n            return Output(read_steps(self.config, self.head, outputs * 0 + last_layer(self.config, outputs, state, lengths)[:, None],"),
        ('read_steps(config, params["head"], outputs,', 'read_steps(config, params["head"], outputs * 0 + last_layer(config, outputs, state, lengths)[:, None],'),
    ),
    *both("models.py", "predictions at every step not masked", "[..., None], predictions, 0.0)", "[..., None], predictions, predictions)"),
    *both("models.py", "steps read out without dropout", "(config, head, outputs, keep)", "(config, head, outputs, None)"),
    *both("models.py", "steps predicted one too late", "predictions = read_out(config, head, outputs, keep)", "predictions = read_out(config, head, outputs[:, [0, *range(outputs.shape[1] - 1)]], keep)"),
    *both("models.py", "residual's reversed outputs read at the end", "outputs[:, 0, P:]", "end[:, P:]"),
    *both("models.py", "residual outputs read in the padding", "at_end(outputs, lengths)", "outputs[:, -1]"),
    *each(
        "attention.py",
        "scores not scaled",
        ("float(key.shape[-1]) ** -0.5", "1.0"),
        ("* key.shape[-1] ** -0.5", ""),
    ),
    *each(
        "attention.py",
        "scores scaled twice",
        ("float(key.shape[-1]) ** -0.5", "float(key.shape[-1]) ** -1.0"),
        ("key.shape[-1] ** -0.5", "key.shape[-1] ** -1.0"),
    ),
    *each(
        "attention.py",
        "softmax over the queries",
        ("weights = softmax(scores, dim=-1)\n    if", "weights = softmax(scores, dim=-2)\n    if"),
        ("weights = softmax(scores, axis=-1)\n    if", "weights = softmax(scores, axis=-2)\n    if"),
    ),
    *both("attention.py", "mask of the heads ignored", "if mask is not None:", "if False:"),
    *both("attention.py", "attention weights never dropped", "if keep is not None:", "if False:"),
    *both("attention.py", "query and key swapped", "query, key, value = heads", "key, query, value = heads"),
    *both("attention.py", "key and value swapped", "query, key, value = heads", "query, value, key = heads"),
    *each(
        "attention.py",
        "heads cut before thirds",
        ("(3, self.num_heads, -1))", "(self.num_heads, 3, -1)).transpose(2, 3)"),
        ("3, num_heads, -1)", "num_heads, 3, -1).swapaxes(2, 3)"),
    ),
    *each(
        "attention.py",
        "heads not turned back",
        ("context.transpose(1, 2).flatten(-2)", "context.reshape(x.shape)"),
        ("context.swapaxes(1, 2).reshape(x.shape)", "context.reshape(x.shape)"),
    ),
    *each(
        "attention.py",
        "bias of the keys trained on rounding",
        ("for_key.detach()", "for_key"),
        ("lax.stop_gradient(for_key)", "for_key"),
    ),
    *each(
        "attention.py",
        "bias of the queries detached",
        ("[for_query, ", "[for_query.detach(), "),
        ("[for_query, ", "[lax.stop_gradient(for_query), "),
    ),
    *both("encoder.py", "GELU by tanh", '"gelu": gelu,', '"gelu": gelu_tanh,'),
    *both("encoder.py", "exact GELU for its approximation", '"gelu_tanh": gelu_tanh', '"gelu_tanh": gelu'),
    *both("cells.py", "LayerNorm's eps 1e-6", "variance + 1e-5", "variance + 1e-6"),
    *both("cells.py", "LayerNorm's eps outside the root", "sqrt(variance + 1e-5)", "sqrt(variance) + 1e-5"),
    *each(
        "cells.py",
        "variance of n - 1",
        ("(moved**2).mean(dim=-1, keepdim=True)", "(moved**2).sum(dim=-1, keepdim=True) / (x.shape[-1] - 1)"),
        ("(moved**2).mean(axis=-1, keepdims=True)", "(moved**2).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)"),
    ),
    *each(
        "cells.py",
        "fast variance",
        ("(moved**2).mean(dim=-1, keepdim=True)", "(x**2).mean(dim=-1, keepdim=True) - x.mean(dim=-1, keepdim=True) ** 2"),
        ("(moved**2).mean(axis=-1, keepdims=True)", "(x**2).mean(axis=-1, keepdims=True) - x.mean(axis=-1, keepdims=True) ** 2"),
    ),
    *each(
        "encoder.py",
        "post-norm for pre-norm",
        ("if self.norm_first:", "if not self.norm_first:"),
        ("if norm_first:", "if not norm_first:"),
    ),
    *both("encoder.py", "no residual around attention", "x + attention(x)", "attention(x)"),
    *both("encoder.py", "no residual around the feed-forward network", "x + feedforward(x)", "feedforward(x)"),
    *each(
        "encoder.py",
        "first norm for the second",
        ("return self.norm2(x + feed", "return self.norm1(x + feed"),
        ('return layer_norm(params["norm2"], x + feed', 'return layer_norm(params["norm1"], x + feed'),
    ),
    *each(
        "encoder.py",
        "last norm left out",
        ("x if self.norm is None else self.norm(x)", "x"),
        ('layer_norm(params["norm"], x) if norm_first else x', "x"),
    ),
    *each(
        "encoder.py",
        "every layer is the first",
        ("x = layer(x, mask", "x = self.layers[0](x, mask"),
        ('params["layers"][str(n)]', 'params["layers"]["0"]'),
    ),
    *each("encoder.py", "sees the next step too", (".tril()", ".tril(1)"), ("tri(T, dtype", "tri(T, k=1, dtype")),
    *both("encoder.py", "padding attended to", "else real_steps(lengths, T)[:, None, None]", "else None"),
    *each(
        "encoder.py",
        "padding reaches the layers",
        ("torch.where(valid[..., None], x, 0.0)\n        for", "x\n        for"),
        ("jnp.where(valid[..., None], x, 0.0)\n    for", "x\n    for"),
    ),
    *both("encoder.py", "padding not zeroed at the end", "x if lengths is None else", "x if True else"),
    *both("encoder.py", "masks of the first layer for all", 'f"layer{layer}."', '"layer0."'),
    *both("encoder.py", "units never dropped", 'drop("units", units)', "units"),
    *each(
        "encoder.py",
        "sines for cosines",
        ("sinusoidal_positions(T, H)", "sinusoidal_positions(T, H)[:, ::-1].copy()"),
        ("sinusoidal_positions(T, H)", "sinusoidal_positions(T, H)[:, ::-1]"),
    ),
    *each(
        "encoder.py",
        "learned positions one late",
        ("self.positions[:T]", "self.positions[1 : T + 1]"),
        ('params["positions"][:T]', 'params["positions"][1 : T + 1]'),
    ),
    *each(
        "models.py",
        "mean over the padding",
        (".sum(dim=1) / lengths[:, None]", ".mean(dim=1)"),
        (".sum(axis=1) / lengths[:, None]", ".mean(axis=1)"),
    ),
    *both("models.py", "last step for the last real one", "lengths - 1]", "-1]"),
    *both("models.py", "embedding of the padding", "[..., None], inputs, 0.0)", "[..., None], inputs, inputs)"),
    *both("models.py", "embedding never dropped", 'x = dropout(x, keep["embedding"]', 'x = x if True else dropout(x, keep["embedding"]'),
    *both("models.py", "pooling attends to the padding", "pooled, y, valid)", "pooled, y, None)"),
    *each(
        "attention.py",
        "padded keys prepared as they are",
        ("keys = real_keys(keys, valid)\n        return Keys(keys, keys @", "return Keys(keys, keys @"),
        ("keys = real_keys(keys, valid)\n    return Keys(keys, keys @", "return Keys(keys, keys @"),
    ),
    *each(
        "attention.py",
        "mask lost between keys and step",
        ("Keys(keys, keys @ self.U_a.T, valid)", "Keys(keys, keys @ self.U_a.T, None)"),
        ('Keys(keys, keys @ params["U_a"].T, valid)', 'Keys(keys, keys @ params["U_a"].T, None)'),
    ),
    *both("attention.py", "mask of products lost between keys and step", "Keys(keys, keys, valid)", "Keys(keys, keys, None)"),
    *both("decoder.py", "truth where it is not taught", "where(teacher[", "where(~teacher["),
    *both("decoder.py", "never taught", "if teacher is not None:", "if False:"),
    *each(
        "decoder.py",
        "truth put out as the forecast",
        ("truth[:, k], value)", "truth[:, k], value)\n            values[-1] = value"),
        ("Decoded(forecast, weights)", "Decoded(value, weights)"),
    ),
    *each(
        "decoder.py",
        "context left out of the cell",
        ("torch.cat([value, context], dim=-1)", "torch.cat([value, 0 * context], dim=-1)"),
        ("jnp.concatenate([value, context], axis=-1)", "jnp.concatenate([value, 0 * context], axis=-1)"),
    ),
    *both("decoder.py", "value and context swapped", "[value, context]", "[context, value]"),
    *both("decoder.py", "context and state swapped in the read-out", "[context, state[0]]", "[state[0], context]"),
    *both("decoder.py", "nothing fed back", "[value, context]", "[0 * value, context]"),
    *each(
        "decoder.py",
        "gradient stops at what is fed back",
        ("[value, context]", "[value.detach(), context]"),
        ("[value, context]", "[lax.stop_gradient(value), context]"),
    ),
    *each(
        "decoder.py",
        "one dropout mask for all steps",
        ("keep[:, k]", "keep[:, 0]"),
        ("(keep, truth, teacher))", "(None if keep is None else 0 * keep + keep[:, :1] > 0, truth, teacher))"),
    ),
    *each(
        "decoder.py",
        "truth one step early",
        ("truth[:, k], value)", "truth[:, k - 1], value)"),
        ("(keep, truth, teacher))", "(keep, None if truth is None else jnp.roll(truth, 1, 1), teacher))"),
    ),
    *each(
        "decoder.py",
        "reset of the decoder's GRU ignored",
        ("GRUCell(*sizes, config.reset_after)", "GRUCell(*sizes)"),
        ("gru_cell(params, x, *state, config.reset_after)", "gru_cell(params, x, *state)"),
    ),
    *each(
        "decoder.py",
        "nonlinearity of the decoder's RNN ignored",
        ("RNNCell(*sizes, config.nonlinearity)", "RNNCell(*sizes)"),
        ("rnn_cell(params, x, *state, config.nonlinearity)", "rnn_cell(params, x, *state)"),
    ),
    *both("models.py", "first value of the first step", "inputs[:, -1] if lengths", "inputs[:, 0] if lengths"),
    *both("models.py", "first value of the last step, padding or not", "at_end(inputs, lengths)", "inputs[:, -1]"),
    *each(
        "models.py",
        "targets sought among the first features",
        ("last[:, config.fed_back]", "last[:, : len(config.fed_back)]"),
        ("last[:, jnp.array(config.fed_back)]", "last[:, : len(config.fed_back)]"),
    ),
    *both("models.py", "decoder's c starts from h", "list(part[-config.directions :])", "list(parts[0][-config.directions :])"),
    *each(
        "models.py",
        "forecast target by target, not step by step",
        ("values.flatten(1)", "values.transpose(1, 2).flatten(1)"),
        ("values.reshape(-1,", "values.swapaxes(1, 2).reshape(-1,"),
    ),
    *each(
        "models.py",
        "decoder attends to the padding",
        ("self.attention.keys(outputs, valid)", "self.attention.keys(outputs)"),
        ("prepare(own, outputs, valid)", "prepare(own, outputs)"),
    ),
    *both("models.py", "no dropout in the decoder", 'keep.get("head") if keep else None', "None"),
    *both("models.py", "decoder never taught", 'keep.get("teacher") if keep else None', "None"),
    *each(
        "training.py",
        "prediction is taught",
        ("put(Batch(batch.inputs, batch.lengths), state.execution))", "put(batch, state.execution))"),
        ("put(Batch(batch.inputs, batch.lengths), state.execution)", "put(batch, state.execution)"),
    ),
    *each(
        "optimizers.py",
        "RMSprop's eps inside the root",
        ("v.sqrt().add_(config.eps)", "(v + config.eps).sqrt()"),
        ("(jnp.sqrt(v) + config.eps)", "jnp.sqrt(v + config.eps)"),
    ),
    *each(
        "optimizers.py",
        "RMSprop without momentum",
        ("m = config.momentum * m + gradient / v", "m = gradient / v"),
        ("m = config.momentum * m + gradient / (", "m = gradient / ("),
    ),
    Fault("kernel without its mask", "torch", "fast.py", "(query, key, value, mask)", "(query, key, value)"),
    Fault("kernel where weights are dropped", "torch", "fast.py", "if keep is not None:", "if False:"),
    *both("losses.py", "half the squared error", "** 2, weights)", "** 2, weights) / 2"),
    *each(
        "losses.py",
        "loss over steps without its mask",
        ("targets.flatten(0, 1), weights,", "targets.flatten(0, 1), None,"),
        ("(*rows, weights,", "(*rows, None,"),
    ),
    *both("losses.py", "sum instead of mean", "losses.mean()", "losses.sum()"),
    *both("losses.py", "weights left out", "if weights is None:", "if True:"),
    *both("losses.py", "weighted sum over rows instead of weights", "weights.sum() * losses.shape[1]", "losses.shape[0] * losses.shape[1]"),
    *both("losses.py", "weighted sum over targets instead of mean", "weights.sum() * losses.shape[1]", "weights.sum()"),
    *each(
        "losses.py",
        "quantiles of another target",
        ("reshape(*targets.shape, len(quantiles))", "reshape(-1, len(quantiles), targets.shape[1]).swapaxes(1, 2)"),
        ("reshape(*targets.shape, len(quantiles))", "reshape(-1, len(quantiles), targets.shape[1]).swapaxes(1, 2)"),
    ),
    *both("losses.py", "quantiles mirrored", "where(u < 0, q - 1, q)", "where(u < 0, -q, 1 - q)"),
    *both("losses.py", "quantile loss of prediction minus target", "(u < 0, q - 1, q) * u", "(u < 0, q - 1, q) * -u"),
    *both("losses.py", "a quantile loss that may be negative", "where(u < 0, q - 1, q)", "where(u < 0, q, q)"),
    *both("losses.py", "tie to the other side", "where(u < 0,", "where(u <= 0,"),
    *each(
        "losses.py",
        "tie shared",
        ("(torch.where(u < 0, q - 1, q) * u)", "torch.maximum(q * u, (q - 1) * u)"),
        ("(jnp.where(u < 0, q - 1, q) * u)", "jnp.maximum(q * u, (q - 1) * u)"),
    ),
    *each(
        "losses.py",
        "sum over the quantiles",
        ("* u).mean(dim=-1)", "* u).sum(dim=-1)"),
        ("* u).mean(axis=-1)", "* u).sum(axis=-1)"),
    ),
    *both("losses.py", "mean and spread swapped", "return center, softplus", "return raw, softplus"),
    *both("losses.py", "no floor under the spread", "softplus + LEAST_STD", "softplus"),
    *each(
        "losses.py",
        "spread by exp",
        ("torch.logaddexp(raw, torch.zeros_like(raw))", "torch.exp(raw)"),
        ("jnp.logaddexp(raw, jnp.zeros_like(raw))", "jnp.exp(raw)"),
    ),
    Fault("torch's softplus", "torch", "losses.py", "torch.logaddexp(raw, torch.zeros_like(raw))", "torch.nn.functional.softplus(raw)"),
    Fault("softplus that overflows", "jax", "losses.py", "jnp.logaddexp(raw, jnp.zeros_like(raw))", "jnp.log1p(jnp.exp(raw))"),
    *both("losses.py", "variance taken for the standard deviation", "z = (targets - center) / std", "z = (targets - center) / std**0.5"),
    *both("losses.py", "square not halved", "z**2 / 2", "z**2"),
    *each(
        "losses.py",
        "log of the spread halved",
        ("+ torch.log(std)", "+ torch.log(std) / 2"),
        ("+ jnp.log(std)", "+ jnp.log(std) / 2"),
    ),
    *both("losses.py", "likelihood without its constant", "std) + LOG_ROOT_2PI", "std)"),
    *both("losses.py", "spread always 1", "softplus + LEAST_STD", "softplus * 0 + 1 + LEAST_STD"),
    *both("losses.py", "smoothing with the target left out", "(1 - label_smoothing) * losses", "losses"),
    *both("losses.py", "smoothing ignored", "if label_smoothing:", "if False:"),
    *each(
        "losses.py",
        "smoothing by a sum over the classes",
        ("surprise.mean(dim=-1, keepdim=True)", "surprise.sum(dim=-1, keepdim=True)"),
        ("surprise.mean(axis=-1, keepdims=True)", "surprise.sum(axis=-1, keepdims=True)"),
    ),
    *both("losses.py", "class weights ignored in the sum", "surprise = class_weights * surprise", "surprise = surprise"),
    *both("losses.py", "class weights ignored in the divisor", "if class_weights is None:", "if True:"),
    *both("losses.py", "mean of class weights over all classes", "(own * class_weights[targets[:, None]]).sum()", "(own * class_weights.mean()).sum()"),
    *both("losses.py", "row weights ignored beside class weights", "if weights is None else weights[:, None]\n    return (own", "\n    return (own"),
    *each(
        "losses.py",
        "log-softmax over the batch",
        ("log_softmax(logits, dim=-1)", "log_softmax(logits, dim=0)"),
        ("log_softmax(logits, axis=-1)", "log_softmax(logits, axis=0)"),
    ),
    *both("optimizers.py", "no 1e-6 in the clip", "(norm + 1e-6)", "norm"),
    *each(
        "optimizers.py",
        "small gradients scaled up by the clip",
        (".clamp(max=1.0)", ".clamp(max=1e9)"),
        ("(norm + 1e-6), 1.0)", "(norm + 1e-6), 1e9)"),
    ),
    *each(
        "optimizers.py",
        "Adam's eps inside the root",
        ("v_unbiased.sqrt_().add_(config.eps)", "v_unbiased.add_(config.eps).sqrt_()"),
        ("(jnp.sqrt(v_unbiased) + config.eps)", "jnp.sqrt(v_unbiased + config.eps)"),
    ),
    *each(
        "optimizers.py",
        "Adam without squares",
        ("addcmul_(gradient, gradient, value", "add_(abs(gradient), alpha"),
        ("(1 - config.beta2) * gradient**2\n            m_", "(1 - config.beta2) * abs(gradient)\n            m_"),
    ),
    *each(
        "optimizers.py",
        "bias correction one step late",
        ("config.beta1 ** (step + 1)", "config.beta1 ** (step + 2)"),
        ("(config.beta1, taken + 1)", "(config.beta1, taken + 2)"),
    ),
    *each(
        "optimizers.py",
        "second moment not corrected",
        ("v_unbiased = v / (1 - config.beta2 ** (step + 1))", "v_unbiased = v"),
        ("v_unbiased = v / one_minus_power(config.beta2, taken + 1)", "v_unbiased = v"),
    ),
    *both("optimizers.py", "adamw's decay in the gradient too", 'if config.optimizer != "adamw":', "if True:"),
    *both("optimizers.py", "adamw's decay left out", 'if config.optimizer == "adamw":', "if False:"),
    *both("optimizers.py", "momentum with dampening", "config.momentum * m + gradient", "config.momentum * m + (1 - config.momentum) * gradient"),
    *both("optimizers.py", "warm-up one step early", "(step + 1) / ", "(step + 2) / "),
    *both("optimizers.py", "cosine over the warm-up as well", "(step - config.warmup_steps) / (config.total_steps - config.warmup_steps)", "step / config.total_steps"),
    *each(
        "optimizers.py",
        "schedule one step late",
        ("-rate(step)", "-rate(step + 1)"),
        ("-rate(taken)", "-rate(taken + 1)"),
    ),
    *each(
        "training.py",
        "step of a continued run forgotten",
        ("._replace(step=step)", "._replace(step=0)"),
        ("step=state.step + step)", "step=state.step)"),
    ),
    *both("training.py", "moments of a continued run forgotten", 'for kind in ("m", "v"):\n        if any', 'for kind in ():\n        if any'),
    *both("training.py", "lengths not given to the model", 'arrays.get("lengths")', "None"),
    *both("training.py", "weights not given to the loss", 'arrays.get("weights")', "None"),
    *both("training.py", "padding counted in a loss over steps", 'weights is None and "lengths" in arrays', "False"),
    *both("training.py", "class weights not given to the loss", 'arrays.get("class_weights")', "None"),
    *both("training.py", "label smoothing not given to the loss", "config.label_smoothing", "0.0"),
    *both("training.py", "quantiles not those asked for", "config.levels", "(0.2, 0.5, 0.8)"),
    *both("training.py", "prediction ignores lengths", "Batch(batch.inputs, batch.lengths)", "Batch(batch.inputs)"),
    *each(
        "training.py",
        "gradient not divided by the loss scale",
        ("gradient = gradient / scale.scale", "gradient = gradient"),
        ("lambda part: part / scale", "lambda part: part"),
    ),
    *each(
        "training.py",
        "loss not scaled",
        ("value.new_tensor(scale.scale)", "torch.ones_like(value) * scale.scale**0"),
        ("jnp.ones_like(value) if scale is None else scale", "jnp.ones_like(value)"),
    ),
    *each(
        "training.py",
        "scale taken off after clipping",
        (
            "        gradient = gradient / scale.scale\n    updates, moved = state.optimizer.update(gradient, state.optimizer_state, vector)",
            "        pass\n    updates, moved = state.optimizer.update(gradient, state.optimizer_state, vector)\n    updates = updates / (scale.scale if scale else 1)",
        ),
        (
            "lambda part: part / scale, gradient)\n    updates, moved = optimizer(optimizer_config).update(gradient, optimizer_state, params)",
            "lambda part: part, gradient)\n    updates, moved = optimizer(optimizer_config).update(gradient, optimizer_state, params)\n    updates = jax.tree.map(lambda part: part if scale is None else part / scale, updates)",
        ),
    ),
    *both("training.py", "scale not halved", "scale.after(result.taken)", "scale.after(True)"),
    *both("training.py", "scale of a continued run forgotten", "LossScale.of(arrays) if", "LossScale() if"),
    *both("training.py", "skipped steps of a continued run counted", "step -= scale.skipped if scale else 0", "step -= 0"),
    *each(
        "training.py",
        "skipped step taken",
        ("if scale is None or result.taken:", "if True:"),
        ("jnp.where(taken, new, old)", "new"),
    ),
    *each(
        "training.py",
        "weights rounded to the dtype of the model",
        (
            "vector_to_parameters(vector + updates, params)",
            "vector_to_parameters(widened(rounded(vector + updates, state.execution), state.execution), params)",
        ),
        (
            "after = optax.apply_updates(params, updates), moved",
            "after = jax.tree.map(lambda part: widened(rounded(part, execution), execution), optax.apply_updates(params, updates)), moved",
        ),
    ),
    *each(
        "training.py",
        "loss of what was not widened",
        ("part if part is None else widened(part, execution)", "part"),
        ("lambda part: widened(part, execution)", "lambda part: part"),
    ),
    *each(
        "training.py",
        "parameters not rounded",
        ("name: rounded(tensor, execution) for name, tensor", "name: tensor for name, tensor"),
        ("lambda array: rounded(array, execution)", "lambda array: array"),
    ),
    Fault("XLA free to keep what was not rounded", "jax", "training.py", '"xla_allow_excess_precision": False', '"xla_allow_excess_precision": True'),
    *both("export.py", "exported parameters not rounded", "n: rounded(from_numpy(a, execution), execution)", "n: from_numpy(a, execution)"),
    Fault("exported layers left to XLA's precision", "jax", "export.py", "lax.reduce_precision(array, *bits) if bits else array", "array"),
    Fault("exported loops without their bodies' rounding", "jax", "export.py", "step.params | bodies", "step.params"),
    Fault("exported cell state as narrow as the readings", "torch", "export.py", "part.shape[-1])), part.dtype)", "part.shape[-1])), inputs.dtype)"),
    Fault("sigmoid rounded inside", "jax", "arrays.py", "map(in_float32, (", "map(lambda function: function, ("),
    *both("cells.py", "norm rounded inside", "@in_float32\ndef standardize", "def standardize"),
    *both("encoder.py", "GELU rounded inside", "@in_float32\ndef gelu(", "def gelu("),
    *each(
        "recurrent.py",
        "cell state in the dtype of the model",
        ("torch.promote_types(of_cell.dtype, torch.float32)", "of_cell.dtype"),
        ("jnp.promote_types(of_cell.dtype, jnp.float32)", "of_cell.dtype"),
    ),
    *each(
        "cells.py",
        "LSTM's gates in the dtype of the model",
        ("(from_input + from_hidden).to(c.dtype)", "(from_input + from_hidden)"),
        ("(from_input + from_hidden).astype(c.dtype)", "(from_input + from_hidden)"),
    ),
    Fault("norm's kernel without its bias", "torch", "fast.py", "self.weight, self.bias)", "self.weight)"),
    Fault("GELU's kernel without its approximation", "torch", "fast.py", 'approximate="tanh"', 'approximate="none"'),
    Fault("padding's number without end", "torch", "fast.py", ".clamp(-far, far)", ""),
    *each(
        "arrays.py",
        "everything in float32",
        ("getattr(torch, execution.master_dtype) if", "torch.float32 if"),
        ("execution.master_dtype if", '"float32" if'),
    ),
    Fault("padding opens the input gate", "torch", "fast.py", "[-1e30, 1e30, 0.0, 0.0]", "[1e30, -1e30, 0.0, 0.0]"),
    Fault("padding only leans on the gates", "torch", "fast.py", "[-1e30, 1e30, 0.0, 0.0]", "[-9.0, 9.0, 0.0, 0.0]"),
    Fault("GRU's kernel for a reset it does not do", "torch", "fast.py", "(carry.plain and reset_after)", "carry.plain"),
    Fault("real steps shut instead of padding", "torch", "fast.py", "(~valid)[..., None]", "valid[..., None]"),
    Fault("last step one early", "torch", "fast.py", "(length - 1).clamp(min=0)", "(length - 2).clamp(min=0)"),
    Fault("reversed within the padding", "torch", "fast.py", "valid.sum(dim=1, keepdim=True) - 1", "T - 1 + 0 * valid.sum(dim=1, keepdim=True)"),
    Fault("outputs left reversed", "torch", "fast.py", "(reverse_in_time(outputs, valid) if reverse else outputs,), (last, c[0])", "(outputs,), (last, c[0])"),
    *both("fast.py", "RNN's kernel whatever is carried", "if not carry.plain:", "if False:"),
    Fault("GRU's kernel whatever is carried", "torch", "fast.py", "(carry.plain and reset_after)", "reset_after"),
    *each(
        "fast.py",
        "LSTM's kernel whatever is carried",
        ("carry.plain and four", "four"),
        ("if not carry.plain or recurrent", "if recurrent"),
    ),
    Fault("kernel for coupled gates", "torch", "fast.py", "carry.plain and four and", "carry.plain and"),
    Fault("decoder's cell without peepholes", "jax", "decoder.py", "general_lstm_cell(params, x,", "general_lstm_cell({n: p for n, p in params.items() if n != 'weight_ch'}, x,"),
    Fault("kernel that rounds c at each step", "torch", "fast.py", "if not (fits and keeps_its_cell_state(inputs)):", "if not fits:"),
    Fault("one block's mask for all queries", "jax", "fast.py", "jnp.moveaxis(own, 0, 2) if by_query else mask\n", "mask[:, :, : len(query)] if by_query else mask\n"),
    Fault("blocks of weights kept", "jax", "fast.py", "    @jax.checkpoint\n    def context", "    def context"),
    Fault("no blocks however many queries", "jax", "fast.py", "T <= 4 * BLOCK", "T <= 4000 * BLOCK"),
    *each(
        "fast.py",
        "kernel for what only the general cell does",
        ('four and len(weights) == 4 + ("weight_hr" in weights)', "four"),
        (" or recurrent.cell_of(weights) is not lstm_cell", ""),
    ),
    Fault("derivative of the forget gate", "jax", "fast.py", "before[1] * f * (1 - f)", "before[1] * f"),
    Fault("derivative of the candidate", "jax", "fast.py", "d_c * i * (1 - g**2)", "d_c * i * (1 - g)"),
    Fault("h's path into c forgotten", "jax", "fast.py", "d_c + d_h * o * (1 - tanh_c**2)", "d_c"),
    Fault("c not carried back", "jax", "fast.py", "(d_c * f,)", "(d_c,)"),
    Fault("state after instead of before", "jax", "fast.py", "parts = (states[1:], start[None]) if reverse else (start[None], states[:-1])", "parts = (states,)"),
    Fault("padding not held on the way back", "jax", "fast.py", "*d_others), d_after)", "*d_others), (d_gates @ weights[\"weight_hh\"], *d_others))"),
    Fault("derivative of relu", "jax", "fast.py", "jnp.where(after[0] > 0, d_after[0], 0.0)", "d_after[0]"),
    Fault("a GRU's steps are not compiled together", "jax", "recurrent.py", "state, reverse, factor)\n\n\ndef unroll_lstm", "state, reverse)\n\n\ndef unroll_lstm"),
    Fault("steps are compiled together on the way forward alone", "jax", "fast.py", "not reverse, unroll=factor", "not reverse"),
    Fault("cuDNN's weights in another order", "jax", "fast.py", 'names = ("weight_ih", "weight_hh",', 'names = ("weight_hh", "weight_ih",'),
    Fault("cuDNN's outputs left reversed", "jax", "fast.py", "outputs = reverse_in_time(outputs, lengths) if reverse else outputs", "outputs = outputs"),
    Fault("cuDNN told that all have all steps", "jax", "fast.py", "jnp.maximum(count, 1)", "jnp.full(B, T)"),
    Fault("cuDNN's states of what has no step", "jax", "fast.py", "hold((count > 0)[:, None],", "hold(None,"),
    Fault("cuDNN in TF32", "jax", "fast.py", "lax.Precision.HIGHEST", "lax.Precision.HIGH"),
    Fault("cuDNN whatever is carried", "jax", "fast.py", "if not carry.plain or recurrent.cell_of(weights) is not lstm_cell:\n        return unroll_lstm(", "if recurrent.cell_of(weights) is not lstm_cell:\n        return unroll_lstm("),
    Fault("backward pass in forward order", "jax", "fast.py", "reverse=not reverse", "reverse=reverse"),
    *both("introspect.py", "decoder looked into: value behind the context", "[value, shown.context]", "[shown.context, value]"),
    *both("introspect.py", "decoder looked into: features without a nudge", ' + nudge["head.features"]\n        value', "\n        value"),
    *both("introspect.py", "decoder looked into: first value from the padding", "last = at_end(inputs, lengths)", "last = inputs[:, -1]"),
    *both("introspect.py", "gradients stop at the chunks of truncated backpropagation", "whole = replace(config, truncated_bptt_steps=None)", "whole = config"),
    *both("introspect.py", "shares of a gradient that stops at chunks", "whole = replace(state.config, truncated_bptt_steps=None)", "whole = state.config"),
]  # fmt: skip


def copy_sources(folder: Path) -> None:
    """Copy what the parity tests need into a folder."""
    ignore = shutil.ignore_patterns("__pycache__", "samples")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in COMMANDS:
        shutil.copy(ROOT / name, folder / name)


def plant(fault: Fault, folder: Path) -> None:
    """Copy the sources into a folder, with the fault in them."""
    copy_sources(folder)
    path = folder / fault.source
    text = path.read_text()
    if fault.old not in text:
        raise LookupError(f"{fault.source}: no longer holds {fault.old!r}")
    path.write_text(text.replace(fault.old, fault.new))


OWN_TESTS = {
    "arrays.py": ["test_training.py"],
    "cells.py": ["test_cells.py", "test_encoder.py"],
    "carry.py": ["test_recurrent.py", "test_carry.py"],
    "export.py": ["test_export.py::test_program_rounds_as_predict"],
    "fast.py": ["test_recurrent.py"],
}


def tests_of(file: str) -> list[list[str]]:
    """The tests to try in turn: the file's own, then those of whole models and training."""
    own = OWN_TESTS.get(file, [f"test_{file}"])
    later = ["test_models.py", "test_training.py", "test_mixed_precision.py"]
    later = [name for name in later if name not in own]
    models = {"encoder.py": "transformer", "decoder.py": "seq2seq"}
    chosen = ["-k", models[file]] if file in models else []
    first, then = ([f"parity_tests/{name}" for name in names] for names in (own, later))
    return [first, [*then, *chosen]]


def catch(fault: Fault, warm: list[str]) -> tuple[Fault, str]:
    """Run the tests on a faulty copy; return the first failing test, "" if all pass."""
    with tempfile.TemporaryDirectory() as name:
        plant(fault, Path(name))
        for files in tests_of(fault.file):
            command = [*warm, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
            result = subprocess.run(command, cwd=name, capture_output=True, text=True)
            if result.returncode == 1:
                failed = [s for s in result.stdout.splitlines() if s.startswith("FAILED")]
                return fault, failed[0].split(" - ")[0].removeprefix("FAILED parity_tests/")
            if result.returncode != 0:
                raise RuntimeError(f"{fault}: the tests did not run:\n{result.stdout[-2000:]}")
    return fault, ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults whose name or file holds this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    chosen = [f for f in FAULTS if options.only in f.name or options.only in str(f.source)]
    survivors = 0
    with warm_pytest() as warm, ThreadPoolExecutor(options.jobs) as pool:
        for fault, caught in pool.map(partial(catch, warm=warm), chosen):
            survivors += not caught
            print(f"{fault.source!s:<28}{fault.name:<46}{caught or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults caught")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
