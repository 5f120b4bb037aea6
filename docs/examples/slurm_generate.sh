#!/bin/bash
# Fifty thousand images by an array of jobs: sbatch slurm_generate.sh MODEL OUT
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --time=4:00:00
#SBATCH --requeue
# Each task makes the parts that are its own; one that was stopped goes on when it is queued again.
set -eu
fastdiff generate "$1" "$2" --num "${NUM:-50000}" --sampler unipc --steps "${STEPS:-20}" --threads "${SLURM_CPUS_PER_TASK:-1}"
