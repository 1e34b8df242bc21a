# SPDX-License-Identifier: Apache-2.0
"""Commits and checksums of other people's weights, as far as a source states them.

Nothing here was downloaded by the project: every line is what its source says, and a download
whose files differ is refused. What no source states is absent, and pinned at first download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pin:
    """commit: of the hub repository, or None. sha256: by path. gigabytes: what is downloaded,
    about, 0 where unknown."""

    commit: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    gigabytes: float = 0.0


_TOKENIZER = {  # the same in both Wans whose lists are known
    "tokenizer/special_tokens_map.json":
        "456b58fd240a06c743a7c2cf8008bec501240d68ebd1fc4018ea569505fea270",
    "tokenizer/spiece.model":
        "e3909a67b780650b35cf529ac782ad2b6b26e6d1f849d3fbb6a872905f452458",
    "tokenizer/tokenizer.json":
        "20a46ac256746594ed7e1e3ef733b83fbc5a6f0922aa7480eda961743de080ef",
    "tokenizer/tokenizer_config.json":
        "1d8d2a216bf8e70ac15b7ddcea566c4dd0433c024b39a58ca5e4c66bd78defbd",
}  # fmt: skip

PINS = {
    # Source, read 2026-11-23: a public download manifest of this commit ("Official repository
    # snapshot. JSON and weights are all SHA-256 pinned"); the transformer's lines stand alike in
    # five other public repositories that pin the same commit.
    "Wan2.1-T2V-1.3B": Pin(
        "0fad780a534b6463e45facd96134c9f345acfa5b",
        {
            "model_index.json":
                "b8b28e022329acf975e027579a1d2dc3de44dba28f4c909b98a880fbf5b0de7d",
            "scheduler/scheduler_config.json":
                "3fed2abbd9bbc301a74db01947198057ec5049808910dccab320925bf27bea6e",
            "text_encoder/config.json":
                "4087b6192155a4643f6d29fd326c4610103130674011ef4d0a53f8bce5de967d",
            "text_encoder/model-00001-of-00005.safetensors":
                "c0ef3a140898e228a3520c9adec60743d2e8e5b3d229651bb37f1a3921919f99",
            "text_encoder/model-00002-of-00005.safetensors":
                "481c7b2b39771c44df6dd8d13ee12ed072d731b4a650bd092885d4d52db229ad",
            "text_encoder/model-00003-of-00005.safetensors":
                "f93148bcc04052a169e1e49bfcf6125df6cf9bf243cb9c627da75266cf8e35c3",
            "text_encoder/model-00004-of-00005.safetensors":
                "a451792c739c05bca4606190cc2dd16731411bac03b4cf6aacc5767321f857c9",
            "text_encoder/model-00005-of-00005.safetensors":
                "7e76e18d224531b8197a46231cb53daf7f2f6ca707130252becf933026ac4eea",
            "text_encoder/model.safetensors.index.json":
                "8af791f24a6447aa30c95786f40adf23d3c9df97470d2f36159c8f1113f120b4",
            **_TOKENIZER,
            "transformer/config.json":
                "0b093fa072e9ff28763febe9b964ee582f566733a6d6709deb9dfba1bde16b81",
            "transformer/diffusion_pytorch_model-00001-of-00002.safetensors":
                "6d011927dbd2cc8afe53d57abab04a8fd86f615d83324770d985fb058ece3a24",
            "transformer/diffusion_pytorch_model-00002-of-00002.safetensors":
                "b92ec2309b1f239af6f746431815a881afcc938abb26a4f08d9a2fd6c892f872",
            "transformer/diffusion_pytorch_model.safetensors.index.json":
                "dcbcf3497134a3f50557ff069dd7d2c84b5c4d8c5932472f6bdb780fb4016589",
            "vae/config.json":
                "f0c1cc1d7decb5badc384f54691746a27a9aeff49f7ebca974e583389342d527",
            "vae/diffusion_pytorch_model.safetensors":
                "d6e524b3fffede1787a74e81b30976dce5400c4439ba64222168e607ed19e793",
        },
        28.9,
    ),
    # Source, read 2026-11-23: nine public repositories that pin this commit and no other. None
    # lists checksums; 80.4 GB is the folder's size in one of them.
    "Wan2.1-T2V-14B": Pin("38ec498cb3208fb688890f8cc7e94ede2cbd7f68", {}, 80.4),
    # Source, read 2026-11-23: a public manifest of this commit with sizes and checksums of all
    # files; the weights' lines stand alike in a second public repository (a set-up script that
    # checks them after its download), three of them in a third.
    "Wan2.2-TI2V-5B": Pin(
        "b8fff7315c768468a5333511427288870b2e9635",
        {
            "model_index.json":
                "6a72faeb564b0e894aea8fc4ef27241106eb739e8584e869b61589a65473add7",
            "scheduler/scheduler_config.json":
                "571a3eed68bcd943a61b9fea8efa9e141472216ada59f928c8b5128ce24b32e0",
            "text_encoder/config.json":
                "a2bcb24699f6c009a2427432bdd483ef8b2b42a712abc9503759cdc77d171f07",
            "text_encoder/model-00001-of-00003.safetensors":
                "a8e861969c7433e707cc5a74065d795d36cca07ec96eb6763eb4083df7248f58",
            "text_encoder/model-00002-of-00003.safetensors":
                "d57d948ece4837d850b7a859a4415121d57cacf8b9ee1d4db200c67f592902d7",
            "text_encoder/model-00003-of-00003.safetensors":
                "0da9ee284e21d1406df708788db1d502d95d75f69faa25cd26151bf8829b7c5f",
            "text_encoder/model.safetensors.index.json":
                "31c4c7bcce679eaa0dd4667462394ddb013dc2f748e0bffc893dc9146a320dab",
            **_TOKENIZER,
            "transformer/config.json":
                "dc00d9866e72cf77db6b531aaa33be4dc7148fef9338442bd0ae9181f7075e9b",
            "transformer/diffusion_pytorch_model-00001-of-00005.safetensors":
                "511bec832a201caa410d09c5ce7dbbf8ad2708c345d82038f684fc74cce982be",
            "transformer/diffusion_pytorch_model-00002-of-00005.safetensors":
                "7c42724912b1911429125dc50c0e9a49ccbada5a601b657d4ed2e15e7597c193",
            "transformer/diffusion_pytorch_model-00003-of-00005.safetensors":
                "e9c3d0c76de786566382f8258101fea973ae37681c6e9fe0e5fe1fb93b806424",
            "transformer/diffusion_pytorch_model-00004-of-00005.safetensors":
                "a331121771790939678db6f585553fd5184609f7d02593c699a4d241b0d834c5",
            "transformer/diffusion_pytorch_model-00005-of-00005.safetensors":
                "78b655685c47efdb2349f36826bb101264e9f212a16325d584aeb5f53c88e719",
            "transformer/diffusion_pytorch_model.safetensors.index.json":
                "d6c1f72d86fbddef8fb5ef1c03f5b56b2bfdb6ae58032db98c6019fd1dae9021",
            "vae/config.json":
                "d996c340fe9a7df5d7371f76a7d8d6956f6c98256080074d8434fa5eeac11360",
            "vae/diffusion_pytorch_model.safetensors":
                "62cd18f19438e35b32ac63020e2852f566e9b02f46b6cdbd87972a356e3c6f4b",
        },
        34.2,
    ),
    # Source, read 2026-11-23: a dozen public repositories name this commit, three of them with
    # this checksum (as the hub's LFS oid, or of their own copy), and its size, 5,026,367,224 bytes.
    "VGGT-1B": Pin(
        "860abec7937da0a4c03c41d3c269c366e82abdf9",
        {
            "model.safetensors":
                "f164acf60724910d8fe1578bb499d800850c7bb0948db7555c413f9fbe60467e",
        },
        5.0,
    ),
    # Source, read 2026-11-23: two public repositories name this commit with this checksum, two
    # more the checksum of their own copy, 5,026,367,224 bytes, whose 1797 tensors are VGGT's.
    "VGGT-1B-Commercial": Pin(
        "ebb29a532abe92960eeb6903a5530f16990ef4ab",
        {
            "model.safetensors":
                "2b766b284359bc47ce26be107254621f685b758a0282082ff109f3ff02788b53",
        },
        5.0,
    ),
    # Source, read 2026-11-23: ffgs 0.1.0.dev1 on PyPI, zoo/anysplat/default.json; alike in three
    # public repositories.
    "AnySplat": Pin(
        "d2e8c343672646041ad4ea518184968f94362f01",
        {
            "model.safetensors":
                "1c4de2ba5a29c540b899af901bf02107395b5f0617655d347e262f814b4c0c7c",
        },
        2.9,
    ),
}  # fmt: skip
