"""The engine behind every exact patch: it computes only what a patch changes.

Glossary of the engine's terms, in the terms of the field:

- **base** and **source**: the run that is patched, and the run that the patched activations come
  from (denoising: corrupted and clean; noising: clean and corrupted). An *unpatched run* is one of
  them without a patch.
- **place**: the positions that a patch covers in each prompt: one position, a role, or all.
- **cell**: one patch of a grid: a site, a layer, a place, and perhaps a head, a neuron or a
  subspace.
- **task**: the input of a sweep: the cells, the base, and the source.
- **variant**: one cell applied to one prompt: one patched run.
- **row**: one variant at one position: a vector of the residual stream. The rows of all variants
  are in one matrix (*packed*), without padding.
- **group**: variants of the same length and the same first patched position; their rows are
  adjacent.
- **prefix**: the positions before a group's first patched position. Their keys and values are those
  of the unpatched run, and the group's variants share them. The later positions are the *suffix*.
- **entry**: cells that replace the same site of the same layer. Their variants *enter* the
  computation there.
- **narrow** rows: the rows of a variant between its patch and the next attention layer. There only
  patched positions differ from the base, so only these are computed. The next attention layer
  *spreads* the change to all later positions.
- **climb**: a set of variants run through the layers together, from the lowest patched layer to the
  top.
- **block**: some prompts with their unpatched runs; a block has one or more climbs. (In `rows` a
  block is a layer of the model: attention and MLP.)
- **readout**: maps the final residual stream at a prompt's last token to the metric.
- **known** values equal the unpatched run's by construction, so they are not computed.
- **plan**: how a sweep is divided into blocks and climbs. A *share* is one block with its climbs.
- **sweep**: the computation of all cells.
- **the plain way**: one full forward pass with one edit, by the decoder itself. A sample of each
  sweep is recomputed in this way (its *check*).
"""
