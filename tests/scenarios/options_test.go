// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// runOptions are what networks get in this run for which a scenario names no mode of its own (tests/scenarios/run --opt).
var runOptions = parseOptions(os.Getenv("OPTIONS"))

func parseOptions(text string) map[string]string {
	options := map[string]string{}
	for _, pair := range strings.Fields(text) {
		key, value, _ := strings.Cut(pair, "=")
		options[key] = value
	}
	return options
}

// conditions that a script can ask for, each derived from the engine or the options of the run.
var conditions = map[string]func() bool{
	"engine29": func() bool { return engine == "29" },
	"engine20": func() bool { return engine == "20" },
	// Containers are on one link with each other, and nothing of mustang's stands between them.
	"slaves": func() bool { return runOptions["mode"] == "macvlan" || runOptions["mode"] == "ipvlan" },
	// Slaves have one MAC and one mode, and the kernel delivers by address.
	"ipvlan": func() bool { return runOptions["mode"] == "ipvlan" },
	// The host's end has a hook of its own, which runs while the container sends.
	"netkit": func() bool { return runOptions["mode"] == "netkit" },
	// Services are translated per packet only, and no hook sees a socket.
	"packet": func() bool { return runOptions["lb"] == "packet" },
	// Services are nftables, and docker_gwbridge publishes.
	"nft": func() bool { return runOptions["ebpf"] == "off" },
	// Containers leave by the engine's docker_gwbridge, and with them what they send to other networks.
	"gwbridge": func() bool { return strings.HasPrefix(runOptions["ipvlan_mode"], "l3") },
	// The machine is emulated, and has another kernel: tests/vm/run.
	"vm": func() bool { return os.Getenv("MUSTANG_VM") != "" },
}

func condition(cond string) (bool, error) {
	if holds := conditions[cond]; holds != nil {
		return holds(), nil
	}
	return false, fmt.Errorf("unknown condition %q: there are %s", cond, strings.Join(slices.Sorted(maps.Keys(conditions)), ", "))
}

// patience stretches a limit of time where the machine is emulated.
func patience(d time.Duration) time.Duration {
	if os.Getenv("MUSTANG_VM") != "" {
		return 8 * d
	}
	return d
}

// lacking are the options of the run that a network of ours does not name. One that names its mode takes none: it is what it says.
func lacking(named map[string]string) map[string]string {
	if named["mode"] != "" {
		return nil
	}
	lacks := maps.Clone(runOptions)
	maps.DeleteFunc(lacks, func(key, _ string) bool { return named[key] != "" })
	if named["lb"] != "" { // which contradicts ebpf=off, as that does it
		delete(lacks, "ebpf")
	}
	if named["ebpf"] == "off" {
		delete(lacks, "lb")
	}
	return lacks
}

// docker is docker itself, but networks of ours get the options of the run.
func docker(_ *scenario, dir string, args []string) result {
	if len(args) > 4 && strings.Join(args[:4], " ") == "network create -d mustang" {
		lacks := lacking(parseOptions(strings.Join(args, " ")))
		for _, key := range slices.Sorted(maps.Keys(lacks)) {
			args = slices.Insert(slices.Clone(args), 4, "-o", key+"="+lacks[key])
		}
	}
	return run(dir, append([]string{"docker"}, args...)...)
}

// compose is docker compose with compose.yaml of the script, whose networks of ours get the options of the run by a second file.
func compose(_ *scenario, dir string, args []string) result {
	text, err := os.ReadFile(filepath.Join(dir, "compose.yaml"))
	if err != nil {
		return result{err: err}
	}
	type network struct {
		Driver  string            `json:"driver,omitempty"`
		Options map[string]string `json:"driver_opts,omitempty"`
	}
	type project struct {
		Networks map[string]network `json:"networks"`
	}
	var p project
	if err := yaml.Unmarshal(text, &p); err != nil {
		return failure("compose.yaml: %v", err)
	}
	more := project{Networks: map[string]network{}}
	for name, n := range p.Networks {
		if n.Driver == "mustang" {
			more.Networks[name] = network{Options: lacking(n.Options)}
		}
	}
	if text, err = yaml.Marshal(more); err != nil {
		return result{err: err}
	}
	const second = "options.yaml"
	if err := os.WriteFile(filepath.Join(dir, second), text, 0o600); err != nil {
		return result{err: err}
	}
	argv := []string{"docker", "compose", "--progress", "quiet", "-f", "compose.yaml", "-f", second}
	return run(dir, append(argv, args...)...)
}
