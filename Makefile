# make demo: all stages on drawn data, in three minutes on two CPU cores. make voc: the real job.
# make check: linter and fast tests. make test: all tests.
# demo and overfit fetch 64 MB of weights once: ImageNet's VGG16, without its fully connected layers.
# Every target installs what it needs into .venv first. PYTHON=python3.12 chooses the interpreter: 3.11 or 3.12.

PYTHON ?= python3
# With an NVIDIA GPU, TensorFlow's CUDA libraries too.
CUDA = $(shell nvidia-smi >/dev/null 2>&1 && sed -n 's/^tensorflow==/tensorflow[and-cuda]==/p' requirements.txt)
BIN := .venv/bin
DEMO := out/demo
TRUNK := out/vgg_16.ckpt
# For make voc: the folder of VOCdevkit and vgg_16.ckpt, flags of tools/download.py and of train.py.
VOC_HOME ?= .
VOC_OUT ?= results
VOC_DOWNLOAD_FLAGS ?=
VOC_TRAIN_FLAGS ?= --recipe adamw --max_steps 13500 --eval_steps 1000

.PHONY: help install check test demo voc overfit bench gpu_check clean

help:
	@echo 'make install   make the virtual environment .venv with all requirements'
	@echo 'make demo      draw sample data, convert, train, evaluate (3 minutes); results page $(DEMO)/index.html'
	@echo 'make voc       download VOC2012 and the weights of VGG16 (2.6 GB), convert, train'
	@echo '               VOC_HOME=/data: where the downloads go; VOC_TRAIN_FLAGS=...: flags of train.py'
	@echo 'make overfit VOC=VOCdevkit/VOC2012   learn four real images by heart; curves in out/overfit'
	@echo 'make bench     measure speed and memory (30 minutes), write results/benchmarks.md; VOC=... or drawn data'
	@echo "make gpu_check check this machine's GPUs (under 10 minutes): out/gpu_check.md"
	@echo 'make check     run the linter and the fast tests (2 minutes)'
	@echo 'make test      run the linter and all tests (10 minutes)'
	@echo 'make clean     remove .venv and out'

install: .venv/installed

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --upgrade pip
	$(BIN)/pip install -r requirements-dev.txt $(CUDA)
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

test: install
	$(BIN)/ruff check .
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations=10

$(TRUNK).index: | install
	$(BIN)/python tools/convert_vgg_weights.py --source imagenet --output $(TRUNK)

demo: install $(TRUNK).index
	$(BIN)/python tools/make_sample_dataset.py --output_dir $(DEMO)/VOC
	$(BIN)/python convert_fcn_dataset.py --data_dir $(DEMO)/VOC --output_dir $(DEMO)
	$(BIN)/python train.py --checkpoint_path $(TRUNK) --output_dir $(DEMO) \
		--dataset_train $(DEMO)/fcn_train.record --dataset_val $(DEMO)/fcn_val.record \
		--fc_channels 512 --crop_size 96 --batch_size 4 --max_steps 300 --learning_rate 2e-4 --schedule poly \
		--val_steps 75 --eval_steps 150
	$(BIN)/python evaluate.py --checkpoint_path $(DEMO)/train --dataset $(DEMO)/fcn_val.record --crf
	@echo 'Open $(DEMO)/index.html in a browser: curves, pictures and figures of the run.'

voc: install
	$(BIN)/python tools/download.py --output_dir '$(VOC_HOME)' $(VOC_DOWNLOAD_FLAGS)
	$(BIN)/python convert_fcn_dataset.py --data_dir '$(VOC_HOME)/VOCdevkit/VOC2012' --output_dir '$(VOC_HOME)/data'
	$(BIN)/python train.py --checkpoint_path '$(VOC_HOME)/vgg_16.ckpt' --output_dir '$(VOC_OUT)' \
		--dataset_train '$(VOC_HOME)/data/fcn_train.record' --dataset_val '$(VOC_HOME)/data/fcn_val.record' \
		$(VOC_TRAIN_FLAGS)

overfit: install $(TRUNK).index
	@test -d '$(VOC)' || { echo 'give a VOC folder: make overfit VOC=VOCdevkit/VOC2012'; exit 1; }
	$(BIN)/python convert_fcn_dataset.py --data_dir '$(VOC)' --output_dir out/overfit
	$(BIN)/python tools/overfit.py --dataset out/overfit/fcn_train.record \
		--checkpoint_path $(TRUNK) --output_dir out/overfit

bench: install
	$(BIN)/python -m benchmarks --output_dir out/bench $(if $(VOC),--data_dir '$(VOC)')
	cp out/bench/benchmarks.md results/benchmarks.md

gpu_check: install
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf .venv out
