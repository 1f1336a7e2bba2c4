# Every command of the project. `make demo` and `make test` need no step before them.
.POSIX:
.PHONY: help build demo run test check footprint clean

help:
	@echo 'make demo       the main job on real input, step by step, with pictures in out/demo'
	@echo 'make run        the same, left running on http://127.0.0.1:3000'
	@echo 'make test       every test; installs what they use (socat, curl, musl-tools) or says how'
	@echo 'make check      formatting, lints, licences, advisories, shell scripts'
	@echo 'make footprint  the static daemon: bytes and memory, against their limits'
	@echo 'make clean      removes target/ and out/'

build:
	cargo build --workspace

demo: build
	host/demo.sh

run: build
	host/demo.sh --keep

test:
	host/install-tools.sh
	cargo build --workspace
	cargo test --workspace
	tests/footprint.sh
	TEEMARKD="$${CARGO_TARGET_DIR:-$$PWD/target}/x86_64-unknown-linux-musl/release/teemarkd" \
	  cargo test --workspace --test memory --test secrecy_memory

check:
	host/install-tools.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --all-features check bans licenses sources
	host/audit.sh
	shellcheck run.sh .ci/run certs/*.sh host/*.sh tests/*.sh bench/*.sh

footprint:
	host/install-tools.sh
	tests/footprint.sh

clean:
	rm -rf target out
