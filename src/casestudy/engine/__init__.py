"""How much is computed at once, and how little: the incremental engine behind every exact patch.

The engine's own words, in terms of the field's:

- **base** and **source**: the run that is changed, and the one that replacements come from
  (denoising: corrupted and clean; noising: clean and corrupted). An *unpatched run* is either of
  them with nothing replaced.
- **place**: the positions that a patch covers, prompt by prompt: one position, a role, all.
- **cell**: one patch of a grid: a site, a layer, a place, perhaps a head, a neuron or a subspace.
- **variant**: one cell applied to one prompt: one patched run.
- **row**: one variant at one position, a vector of the residual stream. Rows of all variants lie
  side by side in one matrix (*packed*), without padding.
- **group**: variants whose rows lie together: those of one length and one first changed position.
- **prefix**: the positions before a group's first changed one. Their keys and values are those of
  the unpatched run, and are shared.
- **entry**: cells that replace one site of one layer: where their variants join the computation.
- **narrow** rows: rows of a variant that has entered but whose change no attention has read yet;
  only its changed positions are computed. The next attention *spreads* them to all later positions.
- **climb**: a set of variants run through the layers together, from the lowest patched layer up.
- **block**: some prompts with their unpatched runs; a block has one or more climbs.
- **readout**: from the final residual stream at a prompt's last token to the metric.
- **known**: values that equal the unpatched run's by construction, and are not computed.
- **plan**: the blocks and climbs a sweep was cut into. **sweep**: all of it.
"""
