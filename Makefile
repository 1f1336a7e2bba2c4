# Every command of the project. None needs another step before it.
.POSIX:
# The parts share target/, and each uses all processors by itself.
.NOTPARALLEL:
.PHONY: help build demo run image size run-vm run-enclave test quick-test vm-test reproduce fuzz-api check footprint costs bench vectors clean

help:
	@echo 'make demo        does the main job on real input, step by step, with pictures in out/demo'
	@echo 'make run         does the same, and stays running on http://127.0.0.1:3000'
	@echo 'make image       builds the enclave image: out/teemark.eif, its PCRs and its parts; with'
	@echo '                   OPERATOR=FILE    the public key of the operator who may send secrets, if not yours'
	@echo '                   CLOSED=1         nobody may: everything it needs is built in'
	@echo '                   CERTS=certs      the three certificate files of that folder built in'
	@echo '                   ENVIRONMENT=FILE settings other than image/teemark.env'
	@echo '                   ENDPOINTS=FILE   an allow list other than allowed_endpoints.yaml'
	@echo '                   SIGN_KEY=FILE SIGN_CERT=FILE  signed: PCR8'
	@echo '                   DEBUG=1          out/teemark-debug.eif: run.sh and a shell in it'
	@echo '                   BUSYBOX=FILE     its shell, in place of /bin/busybox: for another architecture than this one'
	@echo '                   ARCH=aarch64     out/teemark-aarch64.eif, for Graviton instances'
	@echo '                   COMPRESSION=gzip kernel and ramdisks compressed so in place of xz (docs/HARDWARE.md)'
	@echo '                   TESTNSM=1        out/teemark-testnsm.eif: attests itself without a Nitro Secure Module,'
	@echo '                                    for virtual machines here; nobody else should believe it'
	@echo 'make size        checks the size of each part of the image against its limit'
	@echo 'make run-vm      boots the image here, together with a parent; curl http://127.0.0.1:3000'
	@echo 'make run-enclave starts the image on an EC2 instance with Nitro Enclaves'
	@echo 'make test        runs every test; installs what they need (socat, curl, QEMU …) or says how to. Its parts:'
	@echo 'make quick-test  runs all tests but those of the next two'
	@echo 'make vm-test     boots the image in virtual machines; with'
	@echo '                   UNPATCHED=1      only the scenario `vsock`, with a kernel that lacks image/kernel/patches. It has'
	@echo '                                    to fail. UNPATCHED=parent: only the parent lacks them; it has to pass'
	@echo '                   RINGS=128        only the scenario `vsock`, with rings of that length: 128, 256, 512, 1024'
	@echo 'make reproduce   builds the image twice and compares'
	@echo 'make fuzz-api    holds the answers to many more requests against docs/openapi.yaml than make test does; with'
	@echo '                   EXAMPLES=1000    so many for each operation'
	@echo '                   SEED=NUMBER      those of an earlier run, which told its seed'
	@echo 'make check       checks formatting, lints, documentation, licences, advisories, shell scripts, units, alerts'
	@echo 'make footprint   checks the static daemon'\''s size, memory and start against their limits'
	@echo 'make bench       measures teemarkd next to what people would run instead, for docs/PERFORMANCE.md; with'
	@echo '                   FULL=1           the whole grid, for more than an hour'
	@echo '                   TEEMARKD=PATH    another build of teemarkd as well'
	@echo 'make costs       checks what a request and the image cost, counted, against what was recorded; RECORD=1 records it'
	@echo 'make vectors     writes formats/vectors: an example of each format, for other implementations'
	@echo 'make clean       removes target/ and out/'

build:
	cargo build -p teemarkd -p teemark -p watermark-service

demo: build
	host/demo.sh

run: build
	host/demo.sh --keep

# The image for another architecture than this machine's has that in its name.
image:
	arch="$${ARCH:-$$(uname -m)}"; [ "$$arch" = "$$(uname -m)" ] && suffix= || suffix="-$$arch"; \
	image/build.sh --arch "$$arch" --name "teemark$$suffix$${DEBUG:+-debug}$${TESTNSM:+-testnsm}" $${DEBUG:+--debug} $${TESTNSM:+--test-nsm} \
	  $${OPERATOR:+--operator "$$OPERATOR"} \
	  $${CLOSED:+--no-operator} $${CERTS:+--certs "$$CERTS"} \
	  $${ENVIRONMENT:+--environment "$$ENVIRONMENT"} $${ENDPOINTS:+--endpoints "$$ENDPOINTS"} \
	  $${COMPRESSION:+--compression "$$COMPRESSION"} $${BUSYBOX:+--shell "$$BUSYBOX"} \
	  $${SIGN_KEY:+--sign-key "$$SIGN_KEY"} $${SIGN_CERT:+--sign-certificate "$$SIGN_CERT"}

# Of the images as they are shipped: without certificates, whatever out/ holds.
size:
	for arch in x86_64 aarch64; do \
	  image/build.sh --arch "$$arch" --name "teemark-$$arch" --output target/size >/dev/null || exit; \
	  echo "$$arch"; target/debug/teemark-image size "target/size/teemark-$$arch.json" || exit; \
	done

# Stock QEMU has no Nitro Secure Module, so there the image brings a stand-in.
run-vm:
	host/install-tools.sh vm
	if [ -n "$${QEMU_NITRO:-}" ]; then [ -f out/teemark.eif ] || $(MAKE) image; \
	  else [ -f out/teemark-testnsm.eif ] || $(MAKE) image TESTNSM=1; fi
	cargo build --workspace --bins
	target/debug/run-vm

run-enclave:
	ENCLAVE_DEBUG=$${DEBUG:+1} ENCLAVE_EIF="$${ENCLAVE_EIF:-out/teemark$${DEBUG:+-debug}.eif}" host/deploy/run-enclave.sh

test: quick-test vm-test reproduce

quick-test:
	host/install-tools.sh vm
	cargo build --workspace
	tests/all.sh
	cargo test --locked --manifest-path bench/Cargo.toml --target-dir bench/target -p teemark-bench
	tests/footprint.sh
	tests/test_nsm.sh
	tests/aarch64.sh
	$(MAKE) costs

vm-test:
	host/install-tools.sh vm
	cargo build --workspace --bins
	cargo test --workspace --test vm -- $${UNPATCHED:+vsock:} $${RINGS:+vsock:}

reproduce:
	host/install-tools.sh image
	tests/reproducible.sh

fuzz-api:
	host/install-tools.sh
	cargo build --workspace --bins
	API_SEED="$${SEED:-$$(od -A n -N 3 -t u4 /dev/urandom | tr -d ' ')}"; echo "SEED=$$API_SEED"; \
	API_SEED="$$API_SEED" API_EXAMPLES="$${EXAMPLES:-1000}" \
	  cargo test --workspace --test openapi every_answer_is_as_the_description_has_it -- --nocapture

check:
	host/install-tools.sh check
	cargo fmt --all --check
	cargo fmt --all --check --manifest-path bench/Cargo.toml
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --locked --manifest-path bench/Cargo.toml --target-dir bench/target --workspace --all-targets -- -D warnings
	cargo clippy -p teemarkd --no-default-features -- -D warnings
	cargo clippy --profile init -p init --target x86_64-unknown-linux-musl -- -D warnings
	cargo clippy --profile init -p init --target aarch64-unknown-linux-musl -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items --quiet
	cargo deny --workspace --all-features check bans licenses sources
	cargo deny --manifest-path bench/Cargo.toml --workspace --all-features check bans licenses sources
	host/audit.sh
	shellcheck run.sh .ci/run image/aarch64-static-pie-gcc certs/*.sh docs/pictures/*.sh examples/*.sh host/*.sh host/deploy/*.sh image/*.sh image/kernel/*.sh tests/*.sh bench/*.sh \
	  host/cli/tests/deploy/nitro-cli host/cli/tests/deploy/socat host/cli/tests/deploy/teemark
	host/deploy/check.sh
	promtool check rules host/deploy/monitoring/alerts.yml
	promtool test rules host/deploy/monitoring/alerts.test.yml
	PATH="$$PATH:$${XDG_CACHE_HOME:-$$HOME/.cache}/teemark/hadolint/bin" hadolint Containerfile

footprint:
	host/install-tools.sh
	tests/footprint.sh

bench:
	bench/run.sh

# Nothing in it is timed, so it may run beside anything else.
costs: size
	host/install-tools.sh
	TEEMARKD="$$(image/programs.sh --symbols | sed -n 1p)" cargo test --workspace --test costs -- $${RECORD:+--record}

vectors:
	TEEMARK_WRITE_VECTORS=1 cargo test -p teemark-formats the_vectors_are_what_the_formats_write

clean:
	rm -rf target out bench/target
