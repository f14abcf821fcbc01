package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// defaulted is an element of a list that has defaults of its own.
type defaulted interface{ setDefaults() }

// decodeYAML decodes raw over dst. Unlike a decoder that stops at the first
// problem, it returns all of them: unknown fields, wrong types, bad durations.
func decodeYAML(raw []byte, dst any) []error {
	j, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return []error{fmt.Errorf("not valid YAML: %w", err)}
	}
	d := json.NewDecoder(bytes.NewReader(j))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return []error{fmt.Errorf("not valid YAML: %w", err)}
	}
	if tree == nil {
		return []error{fmt.Errorf("the file is empty; it must start with apiVersion: %s", APIVersion)}
	}
	var errs problems
	decode("", tree, reflect.ValueOf(dst).Elem(), &errs)
	return errs
}

var durationType = reflect.TypeFor[time.Duration]()

// decode sets dst from v, a value of decoded JSON.
func decode(path string, v any, dst reflect.Value, errs *problems) {
	if v == nil {
		return // written but empty: the default stands
	}
	if dst.Type() == durationType {
		decodeDuration(path, v, dst, errs)
		return
	}
	switch dst.Kind() {
	case reflect.Struct:
		decodeStruct(path, v, dst, errs)
	case reflect.Slice:
		decodeSlice(path, v, dst, errs)
	case reflect.Pointer:
		dst.Set(reflect.New(dst.Type().Elem()))
		decode(path, v, dst.Elem(), errs)
	case reflect.Map:
		decodeMap(path, v, dst, errs)
	case reflect.String:
		if s, ok := v.(string); ok {
			dst.SetString(s)
		} else {
			errs.add(at(path), "must be a string, is %s", describe(v))
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			dst.SetBool(b)
		} else {
			errs.add(at(path), "must be true or false, is %s", describe(v))
		}
	case reflect.Int, reflect.Int64:
		n, ok := v.(json.Number)
		i, err := n.Int64()
		if !ok || err != nil {
			errs.add(at(path), "must be a whole number, is %s", describe(v))
			return
		}
		dst.SetInt(i)
	case reflect.Float64:
		n, ok := v.(json.Number)
		f, err := n.Float64()
		if !ok || err != nil {
			errs.add(at(path), "must be a number, is %s", describe(v))
			return
		}
		dst.SetFloat(f)
	default:
		// A schema mistake of ours, found by any test that decodes the field.
		panic(fmt.Sprintf("config: cannot decode into %v", dst.Type()))
	}
}

func decodeDuration(path string, v any, dst reflect.Value, errs *problems) {
	s, ok := v.(string)
	if !ok {
		errs.add(at(path), "must be a duration with a unit, such as 500ms or 2m, is %s", describe(v))
		return
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		errs.add(at(path), "must be a duration such as 500ms or 2m, is %q", s)
		return
	}
	dst.SetInt(int64(d))
}

func decodeStruct(path string, v any, dst reflect.Value, errs *problems) {
	obj, ok := v.(map[string]any)
	if !ok {
		errs.add(at(path), "must be a mapping, is %s", describe(v))
		return
	}
	fields := map[string]reflect.Value{}
	fieldsOf(dst, fields)
	for _, key := range slices.Sorted(maps.Keys(obj)) {
		f, ok := fields[key]
		if !ok {
			errs.add(join(path, key), "unknown field; known here: %s", strings.Join(slices.Sorted(maps.Keys(fields)), ", "))
			continue
		}
		decode(join(path, key), obj[key], f, errs)
	}
}

// fieldsOf maps JSON names to the fields of a struct, those of embedded structs
// included.
func fieldsOf(v reflect.Value, dst map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			fieldsOf(v.Field(i), dst)
			continue
		}
		if !f.IsExported() {
			continue // ours, not the file's
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		dst[name] = v.Field(i)
	}
}

func decodeSlice(path string, v any, dst reflect.Value, errs *problems) {
	list, ok := v.([]any)
	if !ok {
		errs.add(at(path), "must be a list, is %s", describe(v))
		return
	}
	out := reflect.MakeSlice(dst.Type(), len(list), len(list))
	for i, e := range list {
		if d, ok := reflect.TypeAssert[defaulted](out.Index(i).Addr()); ok {
			d.setDefaults()
		}
		decode(fmt.Sprintf("%s[%d]", path, i), e, out.Index(i), errs)
	}
	dst.Set(out)
}

func decodeMap(path string, v any, dst reflect.Value, errs *problems) {
	obj, ok := v.(map[string]any)
	if !ok {
		errs.add(at(path), "must be a mapping, is %s", describe(v))
		return
	}
	out := reflect.MakeMap(dst.Type())
	for _, key := range slices.Sorted(maps.Keys(obj)) {
		e := reflect.New(dst.Type().Elem()).Elem()
		decode(join(path, key), obj[key], e, errs)
		out.SetMapIndex(reflect.ValueOf(key), e)
	}
	dst.Set(out)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func at(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

func describe(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the string %q", v)
	case json.Number:
		return "the number " + v.String()
	case bool:
		return fmt.Sprint(v)
	case []any:
		return "a list"
	case map[string]any:
		return "a mapping"
	}
	return fmt.Sprintf("a %T", v)
}
