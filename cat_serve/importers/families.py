"""The families whose published files can be imported: where each is described, had, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Published generators that one importer reads.

    Attributes:
        title: how its paper calls it.
        module: has `convert(path, ImportOptions) -> Checkpoint`, or `read(Tensors, ImportOptions) -> Imported`.
        paper, repository: where it is described and written; weights: where a user gets the file.
        licence: of code and weights.
        fid: FID-50K at one forward pass, ImageNet 256 px, as published, never as measured here.
        needs: what a user must have beside the file.
        options: of `ImportOptions`, those that mean something for some of its files alone.
    """

    name: str
    title: str
    module: str
    paper: str
    repository: str
    weights: str
    licence: str
    fid: str
    needs: str = "SD-VAE: stabilityai/sd-vae-ft-mse"
    options: tuple[str, ...] = ()


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="gat",
            title="GAT",
            module="cat_serve.importers.gat",
            paper="Scalable GANs with Transformers, arXiv 2509.24935",
            repository="github.com/hse1032/GAT",
            weights="checkpoints of its train.py; published ones are announced in its README",
            licence="MIT",
            fid="GAT-XL/2 2.18",
        ),
        Family(
            name="advflow",
            title="AdvFlow",
            module="cat_serve.importers.advflow",
            paper="Adversarial Flow Models, arXiv 2511.22475",
            repository="github.com/ByteDance-Seed/Adversarial-Flow-Models",
            weights="huggingface.co/ByteDance-Seed/Adversarial-Flow-Models, xl2_1nfe_guided_*.pth",
            licence="MIT",
            fid="XL/2 2.38, 56 layers 2.08, 112 layers 1.94",
            options=("heads", "repeats"),
        ),
        Family(
            name="imf",
            title="iMF",
            module="cat_serve.importers.imf",
            paper="Improved Mean Flows, arXiv 2512.02012",
            repository="github.com/Lyy-iiis/imeanflow, branch torch",
            weights="huggingface.co/Lyy0725/iMF, iMF-XL-2.pth and the other sizes",
            licence="MIT",
            fid="B/2 3.32, M/2 2.26, L/2 1.83, XL/2 1.72",
            options=("omega", "t_min", "t_max"),
        ),
        Family(
            name="pmf",
            title="pMF",
            module="cat_serve.importers.pmf",
            paper="One-step Latent-free Image Generation with Pixel Mean Flows, arXiv 2601.22158",
            repository="github.com/Lyy-iiis/pMF, branch torch",
            weights="huggingface.co/Lyy0725/pMF",
            licence="MIT",
            fid="B/16 3.15, L/16 2.51, H/16 2.15 (at 512 px B/32 3.63, L/32 2.69, H/32 2.36)",
            needs="nothing: it makes pixels",
            options=("omega", "t_min", "t_max", "noise_scale"),
        ),
        Family(
            name="soflow",
            title="SoFlow",
            module="cat_serve.importers.soflow",
            paper="SoFlow: Solution Flow Models, arXiv 2512.15657",
            repository="github.com/zlab-princeton/SoFlow",
            weights="huggingface.co/zlab-princeton/SoFlow, XL-2-cond and the other sizes",
            licence="MIT",
            fid="B/2 4.85, M/2 3.73, L/2 3.20, XL/2 2.96",
            options=("heads",),
        ),
        Family(
            name="dmf",
            title="DMF",
            module="cat_serve.importers.dmf",
            paper="Decoupled MeanFlow, arXiv 2510.24474",
            repository="github.com/kyungmnlee/dmf",
            weights="huggingface.co/kyungmnlee/DMF",
            licence="none stated: ask its authors",
            fid="XL/2 2.16 (at 512 px 2.12)",
            needs="SD-VAE: stabilityai/sd-vae-ft-ema",
            options=("heads", "encoder_blocks"),
        ),
        Family(
            name="alphaflow",
            title="alpha-Flow",
            module="cat_serve.importers.alphaflow",
            paper="alpha-Flow, arXiv 2510.20771",
            repository="github.com/snap-research/alphaflow",
            weights="huggingface.co, linked in its README; pickles that may want code executed",
            licence="Snap's, non-commercial",
            fid="alpha-Flow-XL/2+ 2.58, its MeanFlow-XL/2 3.47",
            needs="the SD-VAE of its configuration, as diffusers writes it",
            options=("heads",),
        ),
        Family(
            name="meanflow",
            title="MeanFlow",
            module="cat_serve.importers.meanflow",
            paper="Mean Flows for One-step Generative Modeling, arXiv 2505.13447",
            repository="github.com/zhuyu-cs/MeanFlow",
            weights="checkpoints of its train.py; none is published",
            licence="MIT",
            fid="XL/2 3.43 (the paper's, of other weights)",
            needs="SD-VAE: stabilityai/sd-vae-ft-ema",
            options=("heads",),
        ),
        Family(
            name="facm",
            title="FACM",
            module="cat_serve.importers.facm",
            paper="Flow-Anchored Consistency Models, arXiv 2507.03738",
            repository="github.com/ali-vilab/FACM",
            weights="huggingface.co/Peterande/FACM",
            licence="Apache-2.0",
            fid="XL/1 1.70",
            needs="VA-VAE f16d32 and latents_stats.pt, both linked in its README",
            options=("latent_stats",),
        ),
    )
}
