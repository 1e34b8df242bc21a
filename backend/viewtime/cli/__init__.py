# SPDX-License-Identifier: Apache-2.0
"""The command line: reads arguments, calls one function, turns errors into one line and a code.
Never imports a stage, a model or torch before a command needs it, never decides anything itself."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from viewtime.cli import generating, measure, weights
from viewtime.cli.terminal import ProgressLine, add_threads, command, set_threads

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, 2 after an error in one line on stderr, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    from viewtime_formats.errors import ViewtimeError

    try:
        return arguments.command(arguments)
    except ViewtimeError as error:
        message = " ".join(str(error).split())
    except KeyboardInterrupt:
        print("\nviewtime: cancelled; nothing was left behind", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error, but nothing more to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        message = f"{error.filename}: {error.strerror}"
    print(f"viewtime: {message}", file=sys.stderr)
    return EXIT_ERROR


# ---- commands ----------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from viewtime import pipeline

    options = pipeline.RunOptions(
        route=arguments.route,
        reconstructor=arguments.reconstructor,
        gaussians=arguments.gaussians,
        **generating.options(arguments),
    )
    with ProgressLine(sys.stderr) as line:
        result = pipeline.run(arguments.capture, arguments.out, options, on_progress=line.show)
    counts = result.gaussians_per_step
    print(
        f"{result.route}: {result.times} times, {min(counts)} to {max(counts)} Gaussians each, "
        f"{result.width} x {result.height} px, {sum(result.seconds.values()):.1f} s -> "
        f"{result.splats}"
    )
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from viewtime import pipeline

    options = pipeline.RunOptions(**generating.options(arguments))
    with ProgressLine(sys.stderr) as line:
        grid = pipeline.generate(arguments.capture, arguments.out, options, on_progress=line.show)
    print(f"all frames -> {grid}")
    return 0


def _reconstruct(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from viewtime import pipeline
    from viewtime_formats.rig import read_rig

    options = pipeline.RunOptions(
        reconstructor=arguments.reconstructor, device=arguments.device,
        memory_budget_gb=arguments.memory_gb, gaussians=arguments.gaussians,
    )  # fmt: skip
    with ProgressLine(sys.stderr) as line:
        splats = pipeline.reconstruct(
            arguments.grid,
            arguments.out,
            options,
            rig=None if arguments.rig is None else read_rig(arguments.rig),
            fps=arguments.fps,
            on_progress=line.show,
        )
    print(f"Gaussians -> {splats}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    from viewtime.server.serve import default_data_folder, serve

    return serve(
        arguments.data or default_data_folder(),
        parent_lease=arguments.parent_lease,
        devices=tuple(arguments.device or ("auto",)),
        idle_seconds=arguments.idle_minutes * 60.0,
        memory_megabytes=arguments.memory_megabytes,
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from viewtime import doctor

    findings = doctor.examine(arguments.data)
    print(doctor.as_json(findings) if arguments.json else doctor.as_text(findings))
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _export(arguments: argparse.Namespace) -> int:
    from viewtime_formats.errors import SequenceError
    from viewtime_formats.ply import write_ply
    from viewtime_formats.splats import read_sequence

    sequence = read_sequence(arguments.splats)
    times = [t for t in range(sequence.times) if sequence.has_step(t)]
    if not times:
        raise SequenceError(f"{arguments.splats}: holds no timestep yet; wait for its job")
    arguments.out.mkdir(parents=True, exist_ok=True)
    digits = max(4, len(str(sequence.times - 1)))
    with ProgressLine(sys.stderr) as line:
        for done, t in enumerate(times, 1):
            path = arguments.out / f"step.{t:0{digits}d}.{arguments.format}"
            write_ply(path, sequence.step(t, verify=True))
            line.write(f"export {done}/{len(times)}")
    print(f"{len(times)} files -> {arguments.out}")
    return 0


def _convert_photos(arguments: argparse.Namespace) -> int:
    from viewtime.convert import photos_to_capture, what_happens

    capture = photos_to_capture(arguments.folder, arguments.capture)
    print(f"{what_happens(capture)} -> {arguments.capture}")
    return 0


def _convert_video(arguments: argparse.Namespace) -> int:
    from viewtime.convert import video_to_capture, what_happens

    capture = video_to_capture(
        arguments.file,
        arguments.capture,
        times=arguments.times,
        size=arguments.size,
        prompt=arguments.prompt,
    )
    print(f"{what_happens(capture)} -> {arguments.capture}")
    return 0


# ---- the parser --------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    from viewtime import __version__

    parser = argparse.ArgumentParser(
        prog="viewtime", description="A clip and a rig of cameras become 4D Gaussian splats."
    )
    parser.add_argument("--version", action="version", version=f"viewtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = command(commands, "run", _run, "run a Capture folder through to splats")
    run.add_argument("--route", choices=("auto", "captured", "generated"), default="auto")
    run.add_argument("--reconstructor", default="bundled", help="name or folder of the model")
    _add_memory(run)
    _add_lifting(run)
    generating.add(run)

    generate = command(commands, "generate", _generate, "fill a Capture's grid with frames")
    _add_memory(generate)
    generating.add(generate)

    reconstruct = command(commands, "reconstruct", _reconstruct, "lift a full grid to splats")
    reconstruct.add_argument("grid", type=Path, help="FrameGrid folder, as generate writes it")
    reconstruct.add_argument("out", type=Path, help="output folder: new or empty")
    reconstruct.add_argument("--rig", type=Path, help="rig.json of its cameras, if they are known")
    reconstruct.add_argument("--fps", type=float, default=24.0, help="rate (default 24)")
    reconstruct.add_argument("--reconstructor", default="bundled", help="name or folder")
    reconstruct.add_argument("--device", default="auto", help='"auto", "cpu" or "cuda:N"')
    _add_memory(reconstruct)
    _add_lifting(reconstruct)
    add_threads(reconstruct)
    serve = command(commands, "serve", _serve, "serve jobs to Blender over loopback HTTP")
    serve.add_argument("--data", type=Path, help="folder of the job database and logs")
    serve.add_argument(
        "--parent-lease",
        action="store_true",
        help='read {"token": "..."} from stdin and exit when stdin ends',
    )
    serve.add_argument(
        "--device",
        action="append",
        help='"auto", "cpu" or "cuda:N"; repeat for one worker on each',
    )
    serve.add_argument(
        "--idle-minutes",
        type=float,
        default=15.0,
        help="how long a worker without a job keeps its models (default 15)",
    )
    serve.add_argument(
        "--memory-megabytes",
        type=int,
        default=0,
        help="end a job in words when its worker holds more than this (default 0: no limit)",
    )
    add_threads(serve)

    doctor = command(commands, "doctor", _doctor, "say what is here and what is missing")
    doctor.add_argument("--json", action="store_true")
    doctor.add_argument("--data", type=Path, help="the backend's data folder to look at")

    export = command(commands, "export", _export, "write a splat sequence as numbered files")
    export.add_argument("splats", type=Path, help="SplatSequence folder")
    export.add_argument("out", type=Path, metavar="OUT_DIR")
    export.add_argument("--format", choices=("ply",), default="ply")

    convert = commands.add_parser("convert", help="make a Capture folder of photos or a video")
    kinds = convert.add_subparsers(required=True, metavar="WHAT")
    photos = command(kinds, "photos", _convert_photos, "calibrated photos with depth")
    photos.add_argument("folder", type=Path)
    photos.add_argument("capture", type=Path)
    video = command(kinds, "video", _convert_video, "a video as the fixed-view clip")
    video.add_argument("file", type=Path)
    video.add_argument("capture", type=Path)
    video.add_argument("--times", type=int, default=None, help="number of frames to take, 1 + 4k")
    video.add_argument("--size", type=int, help="height in pixels (default: the video's own)")
    video.add_argument("--prompt", default="", help="what the clip shows")

    measure.add(commands)
    weights.add(commands)
    return parser


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-gb",
        type=float,
        help="memory that the reconstructor's model, and a generator's VAE, may each take: they "
        "compute in smaller parts to keep it (default: no bound)",
    )


def _add_lifting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gaussians",
        choices=("auto", "learned", "analytic"),
        default="auto",
        help="made by the reconstructor's head or by the analytic fusion (default: as it has it)",
    )
