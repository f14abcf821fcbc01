package bench

import (
	"encoding/json"
	"strconv"

	"penstock.dev/penstock/internal/workload"
)

// appendBody writes a request's JSON. The prompt is expanded straight into it:
// generated text needs no escaping, and answers come already escaped.
func (p *plan) appendBody(dst []byte, r *workload.Request, answers [][]byte) []byte {
	dst = append(dst, `{"model":`...)
	dst = append(dst, p.modelJSON...)
	if p.chat {
		dst = append(dst, `,"messages":[`...)
		first := true
		for role, segs := range workload.Messages(r.Prompt) {
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = append(dst, `{"role":"`...)
			dst = append(dst, role.String()...)
			dst = append(dst, `","content":"`...)
			dst = workload.TextWithAnswers(dst, segs, answers)
			dst = append(dst, `"}`...)
			if role == workload.RoleAssistant {
				answers = answers[min(len(segs), len(answers)):]
			}
		}
		dst = append(dst, ']')
	} else {
		dst = append(dst, `,"prompt":"`...)
		dst = workload.TextWithAnswers(dst, r.Prompt, answers)
		dst = append(dst, '"')
	}
	dst = append(dst, `,"max_tokens":`...)
	dst = strconv.AppendInt(dst, int64(r.Output), 10)
	if p.IgnoreEOS {
		dst = append(dst, `,"ignore_eos":true`...)
	}
	if p.Stream {
		dst = append(dst, `,"stream":true,"stream_options":{"include_usage":true}`...)
	}
	return append(dst, `,"temperature":0}`...)
}

// bodyRoom is the size to allocate for a request's body.
func (p *plan) bodyRoom(r *workload.Request) int {
	return 256 + len(p.modelJSON) + 64*len(r.Prompt) + r.Input*workload.BytesPerToken
}

func quoteJSON(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // a string always marshals
	}
	return b
}
