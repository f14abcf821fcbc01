# What a developer does every day. CI runs .ci/run, which these targets share.

FUZZTIME ?= 10s
BENCH    ?= .
FLAGS    ?=
SOAK     ?= 20m

.DEFAULT_GOAL := help
.PHONY: help build check check-engine test race fuzz soak fidelity contest contest-kv bench bench-gateway bench-kv kv-truth pd-failures pd

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the binary: dist/penstock
	@bash .ci/run build

check: ## Vet, format, house rules and lint: run this before a commit
	@bash .ci/run vet format rules lint

check-engine: ## Ask a real engine what it can do: URL=http://localhost:8000
	go run ./cmd/penstock check --engine '$(URL)' $(FLAGS)

test: ## Run all tests
	go test ./...

race: ## Run the tests of the concurrent packages under the race detector
	@bash .ci/run race

fuzz: ## Fuzz every target in turn, FUZZTIME=10s each
	@FUZZTIME=$(FUZZTIME) bash .ci/run fuzz

soak: ## Mixed traffic for SOAK=20m, after which nothing may be left behind
	go test ./test/soak -run Soak -soak $(SOAK) -timeout 2h -v

fidelity: ## Compare models and simulator with what was measured on real engines
	@go build -o dist/fidelity ./test/fidelity
	@./dist/fidelity $(FLAGS)

contest: ## Every routing policy against every other in virtual time, 10 minutes; FLAGS=--quick for two
	@go build -o dist/contest ./test/contest
	@./dist/contest $(FLAGS)

contest-kv: ## What it is worth to know what engines have cached, in virtual time, 13 minutes; FLAGS=--quick for one
	@go build -o dist/contestkv ./test/contestkv
	@./dist/contestkv $(FLAGS)

pd: ## Prompts apart from answers and KV that moves, in virtual time, against published figures and fixed layouts, 4 minutes; FLAGS=--quick for one
	@go build -o dist/pd ./test/pd
	@./dist/pd $(FLAGS)

bench: ## Run the benchmarks, BENCH=regexp
	go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

bench-gateway: build ## Measure what the gateway costs beside HAProxy, 8 minutes; FLAGS=--quick for two
	@command -v haproxy >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq haproxy >/dev/null; }
	@go build -o dist/benchgateway ./test/benchgateway
	@./dist/benchgateway $(FLAGS)

kv-truth: ## Hold what is said to be cached to what is, while events get lost and engines restart, 4 minutes; FLAGS=--quick
	@go build -o dist/kvtruth ./test/kvtruth
	@./dist/kvtruth $(FLAGS)

pd-failures: ## Have everything happen to split requests that can, a hundred times each under load, 8 minutes; FLAGS=--quick
	@go build -o dist/pdfail ./test/pdfail
	@./dist/pdfail $(FLAGS)

bench-kv: ## Measure the index of blocks with 10 million of them, half a minute; FLAGS=--quick for less
	@go build -o dist/benchkv ./test/benchkv
	@./dist/benchkv $(FLAGS)
