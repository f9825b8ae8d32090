#!/bin/sh
# Builds the TensorRT engine of the bundle that this container serves, unless its volume holds it already. It says how
# far it is, and proves the engine before it is kept (docs/gpu.md).
set -eu
bundle=${SURGSEG_BUNDLE:-$(python -c 'from service.bundles import DEFAULT_BUNDLE; print(DEFAULT_BUNDLE)')}
exec python -m model_export build "$bundle" --runtime tensorrt \
    --engines "$SURGSEG_ENGINES" --batch-sizes "$SURGSEG_BATCH_SIZES" \
    ${SURGSEG_PRECISION:+--precision "$SURGSEG_PRECISION"} "$@"
