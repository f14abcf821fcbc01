package api

import (
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"strings"
	"testing"
)

// partsForm joins parts, each with its header, into a form with the boundary B.
func partsForm(parts ...string) string {
	return "--B\r\n" + strings.Join(parts, "\r\n--B\r\n") + "\r\n--B--\r\n"
}

const (
	modelPart = "Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1"
	filePart  = "Content-Disposition: form-data; name=\"file\"; filename=\"a;\\\"b\\\".wav\"\r\nContent-Type: audio/wav\r\n\r\nRIFF\x00\xff\r\n--\r\n"
)

func TestScanForm(t *testing.T) {
	for _, c := range []struct {
		name, body, want string
		model            string
	}{
		{"plain", partsForm(filePart, modelPart), "", "whisper-1"},
		{"bare name", partsForm("content-disposition: Form-Data; name=model\r\n\r\nm"), "", "m"},
		{"text around", partsForm("Content-Disposition: form-data; name=\"prompt\"\r\n\r\nname=\"model\"", modelPart), "", "whisper-1"},
		{"no model", partsForm(filePart), `"model" is required`, ""},
		{"a file named model", partsForm("Content-Disposition: form-data; name=\"model\"; filename=\"m\"\r\n\r\nx"), `"model" is required`, ""},
		{"two models", partsForm(modelPart, modelPart), `"model" must stand there once`, ""},
		{"two streams", partsForm(modelPart, "Content-Disposition: form-data; name=\"stream\"\r\n\r\ntrue", "Content-Disposition: form-data; name=\"stream\"\r\n\r\nfalse"), `"stream" must stand there once`, ""},
		{"preamble", "hello\r\n" + partsForm(modelPart), "expected the boundary", ""},
		{"no end", "--B\r\n" + modelPart, "expected another boundary", ""},
		{"line feeds", strings.ReplaceAll(partsForm(modelPart), "\r\n", "\n"), "a line end behind the boundary", ""},
		{"epilogue", partsForm(modelPart) + "more", "the end of the body", ""},
		{"no name", partsForm("Content-Disposition: form-data\r\n\r\nx"), "Content-Disposition: form-data with a name", ""},
		{"no disposition", partsForm("Content-Type: text/plain\r\n\r\nx"), "a part with a name", ""},
		{"encoded name", partsForm("Content-Disposition: form-data; name*=utf-8''model\r\n\r\nx"), "with a name", ""},
		{"escaped name", partsForm("Content-Disposition: form-data; name=\"mod\\el\"\r\n\r\nx"), "with a name", ""},
		{"two names", partsForm("Content-Disposition: form-data; name=a; name=model\r\n\r\nx"), "with a name", ""},
		{"attachment", partsForm("Content-Disposition: attachment; name=\"model\"\r\n\r\nx"), "with a name", ""},
		{"transfer encoding", partsForm("Content-Disposition: form-data; name=\"model\"\r\nContent-Transfer-Encoding: base64\r\n\r\nx"), "no transfer encoding", ""},
		{"boundary goes on", "--B\r\n" + modelPart + "\r\n--Bx\r\n--B--", "a line end behind the boundary", ""},
		{"empty", "", "expected the boundary", ""},
	} {
		r, err := ScanForm([]byte(c.body), "B")
		switch {
		case c.want == "" && (err != nil || r.Model != c.model):
			t.Errorf("%s: %+v %v", c.name, r, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := ScanForm([]byte(partsForm(modelPart)), ""); err == nil {
		t.Error("took a form without a boundary")
	}
	r, err := ScanForm([]byte(partsForm(modelPart, "Content-Disposition: form-data; name=\"stream\"\r\n\r\nTrue")), "B")
	if err != nil || !r.Stream {
		t.Errorf("stream: %+v %v", r, err)
	}
	out := r.Rewrite([]byte(partsForm(modelPart, filePart)), Changes{Model: "other \"name\"", Salt: "s"})
	if want := strings.Replace(partsForm(modelPart, filePart), "whisper-1", "other \"name\"", 1); string(out) != want {
		t.Errorf("rewritten: %q", out)
	}
}

// What tells engines to move KV is no more a client's to say in a form than in JSON.
func TestFormsDoNotMoveKV(t *testing.T) {
	field := func(name, value string) string {
		return "Content-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value
	}
	for _, c := range []struct{ name, body, want string }{
		{"first", partsForm(field("kv_transfer_params", `{"remote_host":"10.0.0.1"}`), modelPart, filePart), partsForm(modelPart, filePart)},
		{"last", partsForm(filePart, modelPart, field("bootstrap_host", "10.0.0.1")), partsForm(filePart, modelPart)},
		{"many", partsForm(field("remote_port", "1"), modelPart, field("remote_host", "h"), filePart, field("data_parallel_rank", "0")), partsForm(modelPart, filePart)},
		{"as a file", partsForm("Content-Disposition: form-data; name=\"kv_transfer_params\"; filename=\"x\"\r\n\r\n{}", modelPart), partsForm(modelPart)},
		{"a member", partsForm(modelPart, field("kv_transfer_params[remote_host]", "h")), partsForm(modelPart)},
		{
			"inside", partsForm(modelPart, field("vllm_xargs", `{"a": 1, "kv_transfer_params": {"remote_host": "h"}, "b": 2}`)),
			partsForm(modelPart, field("vllm_xargs", `{"a": 1, "b": 2}`)),
		},
		{"text that has no members", partsForm(modelPart, field("vllm_xargs", "kv_transfer_params")), partsForm(modelPart, field("vllm_xargs", "kv_transfer_params"))},
	} {
		r, err := ScanForm([]byte(c.body), "B")
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := r.Rewrite([]byte(c.body), Changes{}); string(got) != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if _, err := ScanForm([]byte(partsForm(modelPart, field("vllm_xargs", `{"a": `))), "B"); err == nil {
		t.Error("an object that does not end was let through unread")
	}
}

// FuzzScanForm holds the scanner to Go's own: whatever it takes, mime/multipart
// reads with the same one model.
func FuzzScanForm(f *testing.F) {
	f.Add([]byte(partsForm(filePart, modelPart)), "B")
	f.Add([]byte("--B--"), "B")
	f.Add([]byte(partsForm("Content-Disposition: form-data; name=remote_host\r\n\r\nh", modelPart, "Content-Disposition: form-data; name=vllm_xargs\r\n\r\n{\"remote_host\":1}")), "B")
	f.Fuzz(func(t *testing.T, body []byte, boundary string) {
		r, err := ScanForm(body, boundary)
		if err != nil {
			return
		}
		if out := r.Rewrite(body, Changes{Model: r.Model}); !bytes.Equal(out, body) {
			again, err := ScanForm(out, boundary)
			if len(r.places.strip) == 0 || err != nil || again.Model != r.Model || len(again.places.strip) > 0 {
				t.Fatalf("the same model changes the body: %q (%v)", out, err)
			}
		}
		if !sendable(boundary) {
			return // no header could carry it
		}
		var models []string
		m := multipart.NewReader(bytes.NewReader(body), boundary)
		for {
			p, err := m.NextRawPart()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // stricter than we are; an engine like it answers 400
			}
			if p.FormName() != "model" || p.FileName() != "" {
				continue
			}
			v, err := io.ReadAll(p)
			if err != nil {
				return
			}
			models = append(models, string(v))
		}
		if len(models) > 0 && (len(models) != 1 || models[0] != r.Model) {
			t.Fatalf("scanned %q, Go reads %q", r.Model, models)
		}
	})
}

// sendable reports whether a boundary is one that RFC 2046 allows.
func sendable(b string) bool {
	for i := range len(b) {
		if b[i] <= ' ' || b[i] > '~' {
			return false
		}
	}
	return b != "" && len(b) <= 70
}
