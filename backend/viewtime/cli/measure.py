# SPDX-License-Identifier: Apache-2.0
"""`viewtime train` and `viewtime evaluate`: reads arguments and calls one function each."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from viewtime.cli.terminal import ProgressLine, add_threads, command, set_threads


def add(commands: Any) -> None:
    """Add both commands to the parser."""
    train = command(commands, "train", _train, "train one of the bundled models")
    train.add_argument("what", choices=("generator", "reconstructor"))
    train.add_argument("config", type=Path, nargs="?")
    add_threads(train)

    evaluate = commands.add_parser("evaluate", help="measure quality")
    measures = evaluate.add_subparsers(required=True, metavar="WHAT")
    left_out = command(
        measures, "leave-one-out", _leave_one_out, "each view of a capture drawn from the others"
    )
    left_out.add_argument("capture", type=Path, help="Capture folder with a rig and depth")
    left_out.add_argument("--time", type=int, default=0, help="timestep (default 0)")
    left_out.add_argument("--size", type=int, help="height in pixels to work at")
    left_out.add_argument(
        "--depth-noise", type=float, default=0.01, help="relative error of the depth (default 0.01)"
    )

    generator = command(
        measures, "generator", _generator, "a generator on held-out scenes, or the paper's tables"
    )
    generator.add_argument("--model", default="bundled", help="name or folder (default bundled)")
    generator.add_argument("--scenes", type=int, default=64, help="held-out scenes (default 64)")
    generator.add_argument("--steps", type=int, help="sampling steps (default 4; --cache: 16)")
    generator.add_argument("--views", type=int, default=5, help="of each grid (default 5)")
    generator.add_argument("--times", type=int, default=5, help="of each grid (default 5)")
    generator.add_argument("--size", type=int, default=128, help="pixels (default 128)")
    generator.add_argument("--lpips", type=Path, help="safetensors file with the weights of LPIPS")
    generator.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    generator.add_argument(
        "--sheets",
        type=Path,
        metavar="FOLDER",
        help="also write contact sheets of the first scenes",
    )
    generator.add_argument(
        "--cache", metavar="CHANGE[,...]",
        help="instead: what FirstBlockCache costs in quality and saves in time at these thresholds",
    )  # fmt: skip
    generator.add_argument(
        "--window", metavar="VxT[,...]",
        help="instead: quality and seams of grids made in windows, beside the whole grid at once",
    )  # fmt: skip
    generator.add_argument("--overlap", metavar="VxT", help="of --window (default: a quarter)")
    generator.add_argument(
        "--table", choices=("2", "S1", "5", "S2", "references", "prior"),
        help="repeat this table of the paper at small scale, or compare how references enter, or "
        "what known geometry adds: trains what is not trained yet",
    )  # fmt: skip
    generator.add_argument(
        "--folder", type=Path, default=Path("runs/tables"), help="where the tables' runs are kept"
    )
    add_threads(generator)
    _add_reconstructor(measures)


def _add_reconstructor(measures: Any) -> None:
    lifts = command(
        measures, "reconstructor", _reconstructor,
        "a reconstructor on held-out scenes or on datasets, or the paper's tables",
    )  # fmt: skip
    lifts.add_argument("--model", default="bundled", help="name or folder (default bundled)")
    lifts.add_argument("--scenes", type=int, help="held-out scenes (default 16)")
    lifts.add_argument(
        "--folder", type=Path, nargs="+", metavar="DATASET",
        help="scenes, or folders of them: the paper's protocol for their layout instead",
    )  # fmt: skip
    lifts.add_argument("--inputs", type=int, nargs="+", help="numbers of given views (--folder)")
    lifts.add_argument("--times", type=int, help="timesteps (--folder)")
    lifts.add_argument(
        "--known-cameras", action="store_true",
        help="tell the dataset's cameras; by default all are predicted, as in the paper",
    )  # fmt: skip
    lifts.add_argument("--size", type=int, help="width in pixels (default: the model's own)")
    lifts.add_argument("--lpips", type=Path, help="safetensors file with the weights of LPIPS")
    lifts.add_argument("--device", default="cpu", help="cpu or cuda:N (default cpu)")
    lifts.add_argument(
        "--table", choices=("8", "S5", "S6"),
        help="8, S5: repeat this table of the paper at small scale, training what is not trained "
        "yet; S6: the two stages beside optimisation, on --folder (NVIDIA Dynamic Scene; CUDA)",
    )  # fmt: skip
    lifts.add_argument(
        "--sets", nargs="+", choices=("moving", "still", "path"),
        help="judge tables 8 and S5 on these held-out sets alone (default: all of the table's)",
    )  # fmt: skip
    lifts.add_argument("--generator", default="bundled", help="for table S6 (default bundled)")
    lifts.add_argument(
        "--runs", type=Path, default=Path("runs/reconstructor-tables"),
        help="where the tables' runs are kept",
    )  # fmt: skip
    add_threads(lifts)


def _train(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    if arguments.config is not None and not arguments.config.is_file():
        from viewtime_formats.errors import ViewtimeError

        raise ViewtimeError(f"{arguments.config}: there is no such file; a configuration is needed")
    import importlib

    recipe = importlib.import_module(f"viewtime.training.{arguments.what}")
    return int(recipe.main([] if arguments.config is None else [str(arguments.config)]) or 0)


def _leave_one_out(arguments: argparse.Namespace) -> int:
    from viewtime.evaluation.photos import leave_one_out
    from viewtime_formats.capture import read_capture

    left_out = leave_one_out(
        read_capture(arguments.capture),
        time=arguments.time,
        size=arguments.size,
        depth_noise=arguments.depth_noise,
    )
    print("view   PSNR dB   SSIM   covered   PSNR dB where covered")
    for view in left_out:
        print(
            f"{view.view:4}   {view.psnr:7.2f}   {view.ssim:.3f}   {view.covered:6.1%}   "
            f"{view.psnr_covered:7.2f}"
        )
    count = len(left_out)
    psnr, ssim = (sum(view[i] for view in left_out) / count for i in (1, 2))
    print(f"mean   {psnr:7.2f}   {ssim:.3f}   over {count} views")
    return 0


def _refuse_idle(arguments: argparse.Namespace, beside: str, **defaults: Any) -> None:
    """An option that does nothing in this kind of run is a mistake, not a wish fulfilled."""
    from viewtime_formats.errors import ViewtimeError

    for name, default in defaults.items():
        if getattr(arguments, name) != default:
            raise ViewtimeError(f"--{name.replace('_', '-')} does nothing {beside}; leave it out")


def _generator(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    if arguments.table is not None:
        _refuse_idle(
            arguments, f"with --table {arguments.table}", model="bundled", scenes=64, steps=None,
            views=5, times=5, size=128, lpips=None, device="cpu", cache=None, window=None,
            sheets=None,
        )  # fmt: skip
    elif arguments.cache is not None or arguments.window is not None:
        _refuse_idle(arguments, "with --cache or --window", lpips=None, sheets=None)
    if arguments.window is None:
        _refuse_idle(arguments, "without --window", overlap=None)
    if arguments.scenes < 1:
        from viewtime_formats.errors import ViewtimeError

        raise ViewtimeError(f"--scenes is {arguments.scenes}; 1 or more is needed")
    if arguments.table is not None:
        from viewtime.evaluation import generator_tables

        scale = generator_tables.Scale()
        print(generator_tables.report(arguments.table, arguments.folder, scale))
        return 0
    if arguments.cache is not None or arguments.window is not None:
        return _generator_speed(arguments)
    from viewtime.evaluation import generator as evaluation
    from viewtime.generator.load import load_generator
    from viewtime.warm import resolved

    with ProgressLine(sys.stderr) as line:
        results = evaluation.evaluate(
            load_generator(arguments.model, device=resolved(arguments.device)),
            scenes=arguments.scenes,
            views=arguments.views,
            times=arguments.times,
            steps=arguments.steps or 4,
            size=arguments.size,
            lpips=evaluation.load_metric(arguments.lpips),
            sheets=arguments.sheets,
            on_scene=lambda done, total: line.write(f"evaluate: scene {done} of {total}"),
        )
    print(evaluation.table(results))
    return 0


def _generator_speed(arguments: argparse.Namespace) -> int:
    from viewtime.options import numbers, window_shape

    thresholds = [] if arguments.cache is None else numbers("cache", arguments.cache)
    windows = [] if arguments.window is None else [
        window_shape("window", text) for text in arguments.window.split(",")
    ]  # fmt: skip
    overlap = None if arguments.overlap is None else window_shape("overlap", arguments.overlap)
    from viewtime.evaluation import generator_speed as speed
    from viewtime.generator.load import load_generator
    from viewtime.warm import resolved

    model = load_generator(arguments.model, device=resolved(arguments.device))
    task = speed.Task(
        arguments.scenes, arguments.views, arguments.times, arguments.size,
        arguments.steps or (16 if thresholds else 4),
    )  # fmt: skip
    tables = []
    with ProgressLine(sys.stderr) as line:

        def show(done: int, total: int) -> None:
            line.write(f"evaluate: scene {done} of {total}")

        if thresholds:
            tables.append(speed.cache_table(speed.cache_costs(model, thresholds, task, show), task))
        for depth in (False, True) if windows else ():
            with_it = replace(task, depth=depth)
            costs = speed.window_costs(model, windows, with_it, overlap, show)
            tables.append(speed.window_table(costs, with_it))
    print("\n\n".join(tables))
    return 0


def _reconstructor(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    told: dict[str, Any] = {"inputs": None, "known_cameras": False}
    if arguments.table in ("8", "S5"):
        _refuse_idle(
            arguments, f"with --table {arguments.table}", **told, folder=None, times=None,
            size=None, scenes=None, lpips=None, device="cpu", model="bundled",
            generator="bundled",
        )  # fmt: skip
    else:
        _refuse_idle(arguments, "without --table 8 or S5", sets=None)
    if arguments.table == "S6":
        _refuse_idle(arguments, "with --table S6", **told, scenes=None)
    elif arguments.table is None:
        _refuse_idle(arguments, "without --table S6", generator="bundled")
        if arguments.folder is None:
            _refuse_idle(arguments, "without --folder", **told, times=None)
        else:
            _refuse_idle(arguments, "with --folder", scenes=None)
    scenes = 16 if arguments.scenes is None else arguments.scenes
    if scenes < 1:
        from viewtime_formats.errors import ViewtimeError

        raise ViewtimeError(f"--scenes is {scenes}; 1 or more is needed")
    if arguments.table == "S6":
        return _table_s6(arguments)
    if arguments.table is not None:
        from viewtime.evaluation import reconstructor_tables as tables

        scale = tables.Scale()
        sets = tuple(arguments.sets or tables.TABLES[arguments.table][1])
        rows = tables.run_table(arguments.table, arguments.runs, scale, sets=sets)
        planes = {test: tables.naive(test, scale) for test in sets}
        print(tables.markdown(rows, planes))
        return 0
    from viewtime.evaluation import reconstructor, reconstructor_datasets
    from viewtime.reconstructor.load import load_reconstructor
    from viewtime.warm import resolved

    model = load_reconstructor(arguments.model, device=resolved(arguments.device))
    lpips = reconstructor.load_metric(arguments.lpips)
    with ProgressLine(sys.stderr) as line:

        def show(done: int, total: int) -> None:
            line.write(f"evaluate: scene {done} of {total}")

        if arguments.folder is None:
            results = reconstructor.evaluate(
                model, scenes=scenes, size=arguments.size, lpips=lpips, on_scene=show
            )
            text = reconstructor.table(results)
        else:
            found = reconstructor_datasets.evaluate_folders(
                model, arguments.folder, inputs=arguments.inputs, times=arguments.times,
                known_cameras=arguments.known_cameras, width=arguments.size, lpips=lpips,
                on_scene=show,
            )  # fmt: skip
            text = reconstructor_datasets.table(found)
    print(text)
    return 0


def _table_s6(arguments: argparse.Namespace) -> int:
    from viewtime_formats.errors import ViewtimeError

    if arguments.folder is None:
        raise ViewtimeError("--table S6: --folder with scenes of NVIDIA Dynamic Scene is needed")
    from viewtime.evaluation import reconstructor, reconstructor_optimised
    from viewtime.generator.load import load_generator
    from viewtime.reconstructor.load import load_reconstructor
    from viewtime.warm import resolved

    reconstructor_optimised.gsplat_rasteriser()  # before anything is loaded
    device = resolved("cuda" if arguments.device == "cpu" else arguments.device)
    with ProgressLine(sys.stderr) as line:
        found = reconstructor_optimised.diagnose_folders(
            load_reconstructor(arguments.model, device=device),
            load_generator(arguments.generator, device=device),
            arguments.folder,
            width=arguments.size or 512,
            times=arguments.times or 13,
            lpips=reconstructor.load_metric(arguments.lpips),
            on_scene=lambda done, total: line.write(f"evaluate: scene {done} of {total}"),
        )
    print(reconstructor_optimised.table(found))
    return 0
