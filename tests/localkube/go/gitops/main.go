// Command gitops-judge says what the tools that deliver engines make of objects. It reads JSON objects from standard input and prints one
// JSON line for each.
//
//	kstatus               as Flux, kpt and Helm's watcher see them: InProgress, Current, Failed, Terminating
//	argocd-health SCRIPT  what this Lua script says in the interpreter that Argo CD has: Healthy, Progressing, Degraded, Suspended
//	helmrelease           whether Flux's types know every field
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
	"sigs.k8s.io/yaml"
)

type verdict struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

type judge func(raw json.RawMessage) (verdict, error)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gitops-judge:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	judge, err := chosen(arguments)
	if err != nil {
		return err
	}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var raw json.RawMessage
		if err := in.Decode(&raw); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		found, err := judge(raw)
		if err != nil {
			return err
		}
		if err := out.Encode(found); err != nil {
			return err
		}
	}
}

func chosen(arguments []string) (judge, error) {
	switch {
	case len(arguments) == 1 && arguments[0] == "kstatus":
		return kstatus, nil
	case len(arguments) == 2 && arguments[0] == "argocd-health":
		script, err := os.ReadFile(arguments[1])
		return func(raw json.RawMessage) (verdict, error) { return argocdHealth(raw, string(script)) }, err
	case len(arguments) == 1 && arguments[0] == "helmrelease":
		return helmRelease, nil
	}
	return nil, errors.New("wanted: kstatus, argocd-health SCRIPT or helmrelease")
}

func kstatus(raw json.RawMessage) (verdict, error) {
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(raw); err != nil {
		return verdict{}, err
	}
	result, err := status.Compute(&object)
	if err != nil {
		return verdict{}, err
	}
	return verdict{result.Status.String(), result.Message}, nil
}

// argocdHealth opens no more of Lua's libraries than every Argo CD does, and like it gives the script the object as obj.
func argocdHealth(raw json.RawMessage, script string) (verdict, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return verdict{}, err
		}
	}
	object, err := luajson.Decode(state, raw)
	if err != nil {
		return verdict{}, err
	}
	state.SetGlobal("obj", object)
	if err := state.DoString(script); err != nil {
		return verdict{}, err
	}
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return verdict{}, fmt.Errorf("the script returned %s, not a table", state.Get(-1).Type())
	}
	return verdict{lua.LVAsString(answer.RawGetString("status")), lua.LVAsString(answer.RawGetString("message"))}, nil
}

func helmRelease(raw json.RawMessage) (verdict, error) {
	var release helmv2.HelmRelease
	if err := yaml.UnmarshalStrict(raw, &release); err != nil {
		return verdict{"Refused", err.Error()}, nil
	}
	return verdict{"Accepted", ""}, nil
}
