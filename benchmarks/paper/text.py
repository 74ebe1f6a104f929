"""The words of the page; page.py fills in `{name}`."""

SCALE = {
    "cpu": """The networks have 4 blocks of width 64 (hidden widths 32 and 256, in the paper's ratio to the width) and
train for 15 epochs by the paper's recipe, its two steps at the same shares of the run. The paper's have 8 (-s) or 12
(-b) blocks of width 512 and train for 300 epochs. So accuracies are lower here; compare within a column.""",
    "paper": "Networks, schedule and recipe are the paper's.",
}

PAGE = """# The paper, side by side

    python -m benchmarks.paper --data CIFAR-10 --data100 CIFAR-100 --out DIR --scale {scale}

trains the networks of Zhang et al., *Multi-Scale MLP-Mixer for image classification* (2022), measures them and writes
this page; `--speed` then measures Table 2. {done} of {runs} trainings are finished. A cell that says *not run* is
filled by the same command with the options in it; [below](#trainings) is the `msmlp train` command of each training.

{about}
All are trained in the same number format (see the list) and measured in float32.

Accuracies are of test images, ± one standard error over images and, with several seeds, over seeds; in brackets the
number of images, x seeds. Networks with the same seed have the same training and validation images. Training holds out
a tenth of each class for validation, which chooses temperatures and thresholds, and another tenth that is not used
here: it has 40,000 images of CIFAR, in the paper 45,000. Test images choose nothing, and the tables look at them once
per finished training. Confidence is the largest softmax probability, as in the paper, after its exit's temperature.
GFLOPs are cumulative. *Served*: the upsampling of reuse is folded into the weights. Arrows compare with the same exit
without reuse in Table 3, with reuse in the first block in Table 4.

## Claims

Differences in points, ours minus theirs, image by image and seed by seed, ± the standard error of images and seeds
together; one seed cannot tell what seeds do. A claim holds, or does not, if its 95 % interval excludes 0: two standard
errors where images make them, up to 4.3 where the spread of three seeds does, and in between where both do (Student's
t, Satterthwaite's degrees of freedom). Of twenty claims about nothing, one would come out as either. At equal GFLOPs
the cascade is where its curve (Figure 4, Algorithm 1) meets the Mixer's cost.

{claims}

## Table 1: single Mixers

{table_1}

The paper has 81.87 % for the Mixer with patch 4 here, and 81.49 % in its Table 2.

## Table 2: images/s at equal accuracy

Batches of 16, which shrink as images leave (the service would also merge the survivors of several batches); cascade and
Mixer in alternation, medians of the rounds, in brackets the median, least and largest ratio. The cascade's thresholds
are the cheapest with at least the Mixer's accuracy on the validation images, or its most accurate if none has that.
Both are those of seed 0. At the scale `cpu` the networks are those of this page, neither -s nor -b.

{table_2}

## Table 3: each exit with and without reuse

Every image runs to the exit. The paper measures this table on its validation images.

{table_3}

## Table 4: reuse in the first block or in all

{table_4}

## Table 5: with and without LN in f

{table_5}

## Figure 4: accuracy against GFLOPs

Algorithm 1 with 40 weight sets: thresholds from validation images, points from test images, the mean over seeds. The
paper sets its weights by hand and does not print them; here exit k has a share in proportion to q^k, with 40 values of
q from 1/20 to 20, each the same multiple of the one before. *Corrected*: a later exit's threshold comes from the images
that have not left. The tables show every third weight set. GFLOPs are counted as in the paper, which says of its curve
that it reaches the Mixer's 81.49 % on CIFAR-10 with 1.5 times fewer FLOPs.

{figure_4}

## Figure 5: easy and hard images

All are answered rightly: easy ones leave at exit 1, hard ones at exit 3, with the weight set whose shares are nearest
to equal. Numbers are places among the test images, from 0. The pictures are in `DIR` alone.

{figure_5}

## GFLOPs: the paper's count and ours

Both are fvcore's: multiply-adds, LN 5 per element, upsampling 1 per element, activations and additions free
(`model/nn/config.py`; a test compares it with fvcore).

- **Table 1 agrees.** {mixers[0]:.4g}, {mixers[1]:.4g} and {mixers[2]:.4g} are printed as 0.07, 0.30 and 1.21, cut after
  two digits. LN is in them: without it the last would be {without_norm:.4f}, cut to 1.20.
- **Table 3 does not** after exit 1: {plain[1]:.2f} and {plain[2]:.2f} without reuse, {reuse[1]:.2f} and {reuse[2]:.2f}
  with it, are printed as 0.21 and 0.72, 0.24 and 0.79. By section 3.1 each stage has the structure of the one before
  with four times the tokens, so it costs about four times as much at any depth and width, and exit 2 five times exit 1:
  0.21 is three times 0.07. The third stage would be Table 1's Mixer with patch 4, {mixers[2]:.2f}, whose channel MLPs
  alone cost 2 x 64 x 512 x 2,048 x 8 = {channel_mlps:.2f}. So no way of counting LN, upsampling or rounding makes three
  stages cost 0.79: Tables 1 and 3 are not about the same networks.
- **What reuse adds to the third stage agrees**: {added[1]:.3f} for all blocks and {added[2]:.3f} for the first are
  printed as 0.79 - 0.72 = 0.07 and 0.73 - 0.72 = 0.01. So E counts after the upsampling, as 64 tokens beside the 64 of
  Z, which doubles the first layer of the token MLP; before it, E would have 16 tokens and add about a quarter. To the
  second stage reuse adds {added[0]:.3f}, printed as 0.24 - 0.21 = 0.03.
- **As served**, with the upsampling folded into that layer, the cascade with reuse costs {served[1]:.2f} at exit 2 and
  {served[2]:.2f} at exit 3.
- The paper's "1.5x fewer FLOPs" is 1.21 / 0.79: the Mixer by Table 1, the whole cascade by Table 3. Counted alike, the
  whole cascade costs {whole:.2f} times the Mixer ({whole_served:.2f} as served), and saves only by early exits.

## Trainings

Images/s are of a shared machine, so do not compare them. A `+` after a commit: with uncommitted changes.

{trainings}
"""
