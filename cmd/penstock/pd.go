package main

import (
	"time"

	"penstock.dev/penstock/internal/enginesim/server"
)

// pdFlags are about a simulated engine's part in requests whose prompt one
// engine computes and another answers.
type pdFlags struct {
	Role          string        `enum:"both,prefill,decode" default:"both" help:"What it is there for: ${enum}. vLLM's engines take any leg, and whole requests, whatever it says."`
	KVConnector   string        `name:"kv-connector" placeholder:"NAME" help:"How it hands KV over: ${connectors} (default: not at all); sglang is for --engine sglang, the others for vLLM's."`
	KVSideChannel string        `name:"kv-side-channel" placeholder:"ADDR" help:"Where others fetch KV (default 127.0.0.1:0); engine I, or rank I, at a port higher by I."`
	KVBootstrap   string        `name:"kv-bootstrap" placeholder:"ADDR" help:"Where the bootstrap server of mooncake and sglang is (default 127.0.0.1:8998); ports as above."`
	KVSharedDir   string        `name:"kv-shared-dir" placeholder:"DIR" help:"The store of the connector shared."`
	KVLink        float64       `name:"kv-link" placeholder:"GB/S" help:"Of KV that can leave the engine (default 50)."`
	KVLinkLatency time.Duration `name:"kv-link-latency" placeholder:"TIME" help:"Of each transfer (default 1ms)."`
	KVLease       time.Duration `name:"kv-lease" placeholder:"TIME" help:"Keep blocks so long to be fetched, on the wall clock (default 30s)."`
	KVWait        time.Duration `name:"kv-wait" placeholder:"TIME" help:"Wait so long for the other leg and the transfer, on the wall clock (default 5m)."`
	KVLoadFailure string        `name:"kv-load-failure" placeholder:"POLICY" help:"When KV cannot be fetched: fail, or recompute (default fail)."`
	KVBlockIDs    string        `name:"kv-block-ids" placeholder:"FORM" help:"Of remote_block_ids: int or string (default int)."`
}

// options returns what the flags say.
func (f pdFlags) options() server.PDOptions {
	o := server.PDOptions{
		Role: f.Role, Connector: f.KVConnector, SideChannel: f.KVSideChannel, Bootstrap: f.KVBootstrap, SharedDir: f.KVSharedDir,
		Link: f.KVLink * 1e9, LinkLatency: f.KVLinkLatency, Lease: f.KVLease, Wait: f.KVWait,
		LoadFailure: f.KVLoadFailure, BlockIDs: f.KVBlockIDs,
	}
	if o.Bootstrap == "" {
		o.Bootstrap = "127.0.0.1:8998"
	}
	return o
}
