package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"penstock.dev/penstock/internal/api"
)

func TestNIXLLegs(t *testing.T) {
	body := []byte(`{"model":"m","stream":true,"max_tokens":300,"messages":[{"role":"user","content":"hi"}]}`)
	first, second, err := ConnectorNIXL.Begin(api.Chat, body, "http://p:8000", 0)
	want := `{"stream":false,"max_tokens":1,"kv_transfer_params":` + nixlAsk + `,"model":"m","messages":[{"role":"user","content":"hi"}]}`
	if err != nil || second != nil || string(first) != want {
		t.Fatalf("%s\n%v", first, err)
	}
	// As in the field: ids of any form, and numbers that no float holds.
	params := `{"do_remote_prefill":true,"remote_block_ids":[[1,2,"a"]],"remote_engine_id":"e-0","remote_blocks_expiry_time":12345678901234567.25,"remote_port":5600}`
	next, err := ConnectorNIXL.Second(body, []byte(`{"id":"x","kv_transfer_params": `+params+` ,"usage":{}}`))
	if err != nil || string(api.Member(next, "kv_transfer_params")) != params || string(api.Member(next, "max_tokens")) != "300" {
		t.Fatalf("%s, %v", next, err)
	}
	for _, answer := range []string{`{}`, `{"kv_transfer_params":null}`, `[]`, ``} {
		if _, err := ConnectorNIXL.Second(body, []byte(answer)); err == nil {
			t.Errorf("an answer of %q is taken", answer)
		}
	}
}

func TestSGLangLegs(t *testing.T) {
	rooms := map[string]bool{}
	for range 100 {
		first, second, err := ConnectorSGLang.Begin(api.Completion, []byte(`{"model":"m","prompt":"x"}`), "http://[::1]:30000", 0)
		if err != nil || string(first) != string(second) {
			t.Fatal(err)
		}
		var got struct {
			Host string      `json:"bootstrap_host"`
			Port int         `json:"bootstrap_port"`
			Room json.Number `json:"bootstrap_room"`
		}
		if err := json.Unmarshal(first, &got); err != nil || got.Host != "::1" || got.Port != DefaultBootstrapPort {
			t.Fatalf("%s, %v", first, err)
		}
		if n, err := got.Room.Int64(); err != nil || n < 0 || rooms[got.Room.String()] {
			t.Fatalf("room %s, %v", got.Room, err)
		}
		rooms[got.Room.String()] = true
	}
	if _, err := ParseConnector("smoke"); err == nil || !strings.Contains(err.Error(), "nixl") {
		t.Errorf("an unknown connector gives %v", err)
	}
}
