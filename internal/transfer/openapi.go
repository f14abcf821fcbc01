package transfer

import (
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// object is a JSON object of the document; keys come out sorted.
type object = map[string]any

// document writes the OpenAPI document of the routes. Both come from one table,
// and schemas from the types that bodies are read into, so that it cannot say
// what is not so.
func document(routes []route) object {
	d := &writer{schemas: object{}}
	paths := object{}
	for _, r := range routes {
		for _, path := range places(r) {
			at, ok := paths[path].(object)
			if !ok {
				at = object{}
				paths[path] = at
			}
			at[strings.ToLower(r.method)] = d.operation(r, path)
		}
	}
	refusal := d.ref(reflect.TypeFor[problem]())
	return object{
		"openapi": "3.1.0",
		"info": object{
			"title": "Penstock transfer metadata exchange", "version": "1",
			"description": "Engines register and keep their leases, look each other up, are judged as pairs, and report transfers of KV.",
		},
		"paths":    paths,
		"security": []any{object{"token": []any{}}, object{"certificate": []any{}}},
		"components": object{
			"schemas": d.schemas,
			"securitySchemes": object{
				"token":       object{"type": "http", "scheme": "bearer"},
				"certificate": object{"type": "mutualTLS"},
			},
			"responses": object{"refusal": object{"description": "Why not.", "content": object{"application/json": object{"schema": refusal}}}},
		},
	}
}

// places are the paths of a route.
func places(r route) []string {
	if r.adapter {
		return []string{r.path, "/at/{instance}" + r.path}
	}
	return []string{r.path}
}

// writer collects schemas.
type writer struct{ schemas object }

// variable finds the variables of a path.
var variable = regexp.MustCompile(`\{(\w+)\}`)

func (d *writer) operation(r route, path string) object {
	var params []any
	for _, m := range variable.FindAllStringSubmatch(path, -1) {
		params = append(params, object{"name": m[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, p := range r.query {
		params = append(params, object{"name": p.name, "in": "query", "required": p.needed, "description": p.what, "schema": object{"type": p.kind}})
	}
	success := object{"description": http.StatusText(r.status)}
	if r.out != nil {
		success["content"] = object{"application/json": object{"schema": d.schema(r.out)}}
	}
	answers := object{strconv.Itoa(r.status): success}
	for _, status := range append(strings.Fields(r.refusals), denied(r)...) {
		answers[status] = object{"$ref": "#/components/responses/refusal"}
		if r.adapter {
			answers[status] = object{"description": "Why not, in the words of the project whose protocol it is."}
		}
	}
	op := object{"summary": r.what, "responses": answers}
	if params != nil {
		op["parameters"] = params
	}
	if r.in != nil {
		op["requestBody"] = object{"required": true, "content": object{"application/json": object{"schema": d.schema(r.in)}}}
	} else if r.method == http.MethodPut {
		op["requestBody"] = object{"required": true, "content": object{"application/octet-stream": object{}}}
	}
	if r.open {
		op["security"] = []any{}
	}
	return op
}

// denied are the statuses of who is not let in.
func denied(r route) []string {
	if r.open {
		return nil
	}
	return []string{"401", "403"}
}

// schema is the schema of a type; structs are written once and referred to.
func (d *writer) schema(t reflect.Type) object {
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem())
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		if t == reflect.TypeFor[time.Time]() {
			return object{"type": "string", "format": "date-time"}
		}
		return d.ref(t)
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return object{"type": "integer"}
	}
	return object{"type": "string"}
}

// ref refers to a struct's schema.
func (d *writer) ref(t reflect.Type) object {
	name := schemaName(t)
	if _, ok := d.schemas[name]; !ok {
		d.schemas[name] = object{} // so that a type may hold itself
		props, needed := object{}, []string{}
		d.fields(t, props, &needed)
		s := object{"type": "object", "properties": props}
		if len(needed) > 0 {
			s["required"] = needed
		}
		d.schemas[name] = s
	}
	return object{"$ref": "#/components/schemas/" + name}
}

// schemaName is a type's name as the document has it: in capitals, and one that
// is shown apart from one that is told.
func schemaName(t reflect.Type) string {
	name := strings.ToUpper(t.Name()[:1]) + t.Name()[1:]
	if strings.HasSuffix(t.PkgPath(), "/transfer") && name == "Instance" {
		return "InstanceEntry"
	}
	return name
}

// fields writes the fields of t as JSON has them; those of embedded structs are
// its own.
func (d *writer) fields(t reflect.Type, props object, needed *[]string) {
	for f := range t.Fields() {
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			d.fields(f.Type, props, needed)
		case name == "" || name == "-":
		default:
			s := d.schema(f.Type)
			if what := meanings[name]; what != "" && s["$ref"] == nil {
				s["description"] = what
			}
			props[name] = s
			if !strings.Contains(rest, "omitempty") {
				*needed = append(*needed, name)
			}
		}
	}
}

// meanings say what fields mean where the name does not.
var meanings = map[string]string{
	"incarnation":    "A nonce, new with every process.",
	"started":        "Milliseconds since 1970; of two incarnations the one begun earlier never replaces the other.",
	"role":           "prefill, decode or both.",
	"digest":         "Of the weights: it decides where both sides tell it.",
	"speculative":    "The drafting configuration, none where there is none.",
	"kvHeads":        "Of the model, over all ranks.",
	"mla":            "One latent per token, whole on every rank.",
	"hybrid":         "Layers of several kinds: windows, state spaces.",
	"blockTokens":    "Tokens of a block; SGLang's page size.",
	"blockBytes":     "Of a block per layer, by group of layers.",
	"layout":         "HND or NHD.",
	"attention":      "The attention backend's name.",
	"mode":           "pull or push.",
	"compatHash":     "The engine's own: it says no, but not why.",
	"permuteLocalKV": "vLLM's enable_permute_local_kv.",
	"blockLeaseMs":   "How long the engine keeps blocks that nobody has pulled.",
	"domain":         "Where it stands in the network; links are measured between domains.",
	"lease":          "A duration such as 30s.",
	"index":          "Goes into the next watch.",
	"leaseMs":        "How long the engine keeps the blocks from now.",
	"tookMs":         "From the first byte asked for to the last one there.",
	"stage":          "planned, prefilling, ready, pulling, done, aborted or expired.",
	"wait":           "Seconds that other flows of the source take away, and lose.",
	"error":          "Why not; of links by what factor, less 1, earlier estimates were off.",
	"samples":        "Finished transfers behind it; 0 is the prior alone.",
	"bytesPerSecond": "Of one lane: a pair of ranks.",
}
