# `make help` lists the targets. Two are enough for a newcomer: `make demo` and `make test`.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

# One static binary; only the race detector needs cgo. The version goes in by -X, so
# nothing depends on what git says of the folder's owner.
export CGO_ENABLED := 0
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
BIN     := bin/keyturn
LDFLAGS := -s -w -X main.version=$(VERSION)

# Packages tested at the same time. Tests start servers of their own, so more than the
# cores only makes them wait for each other.
JOBS      ?= $(shell nproc 2>/dev/null || echo 2)
# Further flags of go test, for example TESTFLAGS='-v -run Explore'.
TESTFLAGS ?=
# How long make soak draws fleets for the simulation.
KEYTURN_SIM_FOR ?= 10m
# What is tested, for example PKG=./internal/rotation. The real systems come first: their
# tests wait more than they compute, beside others that compute more than they wait.
PKG       ?= ./test/real ./...

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build bin/keyturn
	@go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/keyturn
	@echo "built $(BIN) $(VERSION)"

.PHONY: demo
demo: build ## rotate real keys under load, on this machine, within 90 seconds
	@$(BIN) demo $(DEMOFLAGS)

.PHONY: test
test: ## install the real parts that are missing, then run every test
	@scripts/install-parts test
	go test -timeout 14m -parallel 4 -p $(JOBS) $(TESTFLAGS) $(PKG)

.PHONY: race
race: ## run every test under the race detector (needs a C compiler)
	@scripts/install-parts test
	CGO_ENABLED=1 go test -race -timeout 20m -p $(JOBS) $(TESTFLAGS) $(PKG)

.PHONY: bench
bench: build ## measure ours against the limit of this machine; writes bench.json
	@scripts/install-parts test
	@rm -f bench.json
	KEYTURN_BENCH_BIN=$(CURDIR)/$(BIN) KEYTURN_BENCH_JSON=$(CURDIR)/bench.json go test -count=1 -timeout 30m -p 1 -run '^$$' -bench . -benchtime 1x $(TESTFLAGS) ./test/bench/...

.PHONY: soak
soak: ## run the long tests as well, with every real part
	@scripts/install-parts test soak
	@scripts/install-gitea
	@scripts/install-moto
	KEYTURN_SIM_FOR=$(KEYTURN_SIM_FOR) KEYTURN_SIM_MUTANTS=all go test -count=1 -timeout 3h -p $(JOBS) -tags soak $(TESTFLAGS) $(PKG)

.PHONY: tools
tools: ## build the pinned development tools into bin/tools
	@scripts/install-tools

.PHONY: fmt
fmt: ## format the code
	@scripts/install-tools gofumpt
	@bin/tools/gofumpt -w .

.PHONY: generate
generate: ## write gen/ from proto/, and everything that go:generate names
	@scripts/install-tools buf protoc-gen-go protoc-gen-connect-go
	@PATH=$(CURDIR)/bin/tools:$$PATH buf generate --clean
	@go generate ./...

.PHONY: lint
lint: ## run golangci-lint
	@scripts/install-tools golangci-lint
	@bin/tools/golangci-lint run ./...

# What CI checks beside the tests: everything but the linter, whose build takes longer
# than all the rest.
.PHONY: check-fast
check-fast: ## format, vet, floors, generated code, documentation
	@scripts/install-tools gofumpt buf protoc-gen-go protoc-gen-connect-go
	@scripts/check-format
	@scripts/check-generated
	@go vet ./...
	@go test ./internal/archtest/... ./internal/doccheck/...
	@echo "check-fast: passed"

.PHONY: check
check: check-fast lint ## check-fast, the linter, and govulncheck where its data is reachable
	@scripts/vulncheck
	@echo "check: passed"

.PHONY: clean
clean: ## remove what make builds, but not the tools
	@rm -rf $(BIN) bench.json
