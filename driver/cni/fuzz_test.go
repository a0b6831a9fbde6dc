// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// called is what a runtime is answered.
type called struct {
	exit   int
	stdout string
}

// call executes the plugin as a runtime does: with a command, variables and a configuration on standard input.
func (w *world) call(t *testing.T, command, sandbox, args string, config []byte) called {
	for name, value := range map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "one", "CNI_NETNS": sandbox, "CNI_IFNAME": "eth0", "CNI_ARGS": args,
		"CNI_PATH": "/nonexistent", "CNI_NETNS_OVERRIDE": "true",
	} {
		t.Setenv(name, value)
	}
	dir := t.TempDir()
	in, err := os.Create(filepath.Join(dir, "in"))
	require.NoError(t, err)
	defer in.Close()
	out, err := os.Create(filepath.Join(dir, "out"))
	require.NoError(t, err)
	defer out.Close()
	_, err = in.Write(config)
	require.NoError(t, err)
	_, err = in.Seek(0, io.SeekStart)
	require.NoError(t, err)
	stdin, stdout := os.Stdin, os.Stdout
	os.Stdin, os.Stdout = in, out
	defer func() { os.Stdin, os.Stdout = stdin, stdout }()
	exit := Plugin{Open: w.open}.Run(ctx, "")
	text, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	return called{exit, string(text)}
}

// FuzzVerbs calls the plugin with any configuration and CNI_ARGS. It answers one JSON object, which is an error with a
// code of the specification unless it exits with 0; what a failed ADD began is undone, and DEL undoes what ADD made.
func FuzzVerbs(f *testing.F) {
	for _, more := range []string{
		``, `,"mode":"bridge","mtu":1400,"vip":false,"publish_sources":["10.0.0.0/8","fd00::/8"]`, `,"mod":"bridge"`, `,"mtu":[1400]`, `,"mtu":1e300`,
		`,"ipv6":true,"internal":true,"ipam":{"ranges":[[{"subnet":"10.5.0.0/24","gateway":"10.5.0.9","range":"10.5.0.128/25"}]]}`,
		`,"ipam":{"type":"../host-local","subnet":"10.5.0.0/24"}`, `,"ipam":[]`, `,"ipam":null,"runtimeConfig":null,"args":null`,
		`,"runtimeConfig":{"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"}],"aliases":["db"]}`,
		`,"runtimeConfig":{"portMappings":[{"hostPort":-1,"containerPort":1e9}]}`,
		`,"runtimeConfig":{"ips":["10.201.0.7/24","::ffff:10.201.0.8"],"mac":"02:42:0A:05:00:07"}`, `,"args":{"cni":{"ips":["10.201.0.9"]}}`,
		`,"runtimeConfig":{"aliases":{"web":["db"]}}`, `,"runtimeConfig":{"aliases":7}`,
		`,"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/a"}],"ips":[{"address":"10.201.0.2/24","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}`,
		`,"prevResult":{"ips":[{"interface":9}]}`, `,"prevResult":7`, `,"cni.dev/valid-attachments":[{"containerID":"one","ifname":"eth0"}]`, `,"name":"../../etc"`,
	} {
		f.Add([]byte(`{"cniVersion":"1.1.0","name":"web","type":"mustang"`+more+`}`), "", byte(0))
	}
	for _, config := range []string{"", "null", "[]", `{"name":"web"}`, `{"cniVersion":"0.4.0","name":"web","type":"mustang"}`, `{"cniVersion":"9","name":"web"}`, `{"cniVersion":1,"name":"web"}`, `{"name":"web"} {}`} {
		f.Add([]byte(config), "IgnoreUnknown=1;IP=10.201.0.7;MAC=02:42:0a:05:00:07", byte(1))
	}
	for _, args := range []string{"IP=10.201.0.7", "IP=ten", "MAC=1", "IP=10.201.0.7;COLOUR=red", "=", ";;", "IP=", "K8S_POD_NAME=x;IgnoreUnknown=yes", "IP=10.201.0.7,fd00::1"} {
		f.Add([]byte(`{"cniVersion":"1.1.0","name":"web","type":"mustang"}`), args, byte(2))
	}
	f.Fuzz(func(t *testing.T, config []byte, args string, pick byte) {
		if strings.ContainsRune(args, 0) {
			return // no variable has that
		}
		if lenient(&skel.CmdArgs{StdinData: config}).IPAM.Type == ipamDHCP {
			return // which makes a device, and not in memory
		}
		w := newWorld(t)
		box := w.sandbox("/run/netns/a")
		nothing := w.lines()
		made := w.call(t, "ADD", box, args, config)
		made.check(t, "ADD")
		attached := slices.ContainsFunc(w.lines(), func(line string) bool { return strings.Contains(line, "one") || strings.HasPrefix(line, "endpoint") })
		require.Equal(t, made.exit == 0, attached, "a failed ADD attaches nothing")
		before := w.lines()
		verb := []string{"CHECK", "STATUS", "GC", "ADD", "VERSION"}[pick%5]
		second := w.call(t, verb, box, args, config)
		second.check(t, verb)
		if verb != "GC" && verb != "ADD" {
			require.Empty(t, cmp.Diff(before, w.lines()), "changed by %s", verb)
		}
		gone := w.call(t, "DEL", box, args, config)
		gone.check(t, "DEL")
		if made.exit == 0 {
			require.Zero(t, gone.exit, gone.stdout)
		}
		if gone.exit == 0 {
			require.Empty(t, cmp.Diff(nothing, w.lines()), "left by DEL")
		}
	})
}

// check requires an answer as the specification wants it.
func (c called) check(t *testing.T, verb string) {
	d := json.NewDecoder(bytes.NewReader([]byte(c.stdout)))
	var answer struct {
		Version string `json:"cniVersion"`
		Code    uint
		Msg     string
	}
	err := d.Decode(&answer)
	if c.exit == 0 && verb != "ADD" && verb != "VERSION" {
		require.Empty(t, c.stdout, verb)
		return
	}
	require.NoError(t, err, "%s answers %q", verb, c.stdout)
	require.False(t, d.More(), "%s answers %q", verb, c.stdout)
	if c.exit != 0 {
		require.NotZero(t, answer.Code, c.stdout)
		require.NotEmpty(t, answer.Msg, c.stdout)
		require.NotEqual(t, uint(999), answer.Code, "bad input is no fault of ours: %s", c.stdout)
	}
}

// FuzzConflist writes the file of a network and reads it as runtimes do: it is the same network.
func FuzzConflist(f *testing.F) {
	f.Add("web", "mode=bridge", "10.5.0.0/24", "10.5.0.128/25", "10.5.0.1", "a=b", true, false)
	f.Add("a.b_c-1", "publish_sources=10.0.0.0/8,fd00::/8", "fd00:5::/64", "", "", "nerdctl/default-network=true", false, true)
	f.Add("x", "mtu=1400", "10.5.0.0/24", "10.5.0.7/32", "", "", false, false)
	f.Add("../x", "name=other", "0.0.0.0/0", "::/0", "fe80::1%eth0", "\x00=\xff", false, false)
	f.Add("web", "com.docker.network.bridge.name=br\u2028", "10.5.0.0/24", "", "", "<&>=\"", true, true)
	f.Fuzz(func(t *testing.T, name, option, subnet, part, gateway, label string, v6, internal bool) {
		n := Network{Name: name, IPv6: v6, Internal: internal}
		if key, value, ok := strings.Cut(option, "="); ok {
			n.Options = map[string]string{key: value}
		}
		p, err := netip.ParsePrefix(subnet)
		if CheckName(name) != nil || n.checkPublish(0) != nil || err != nil || p != p.Masked() {
			return // networkOf has refused it
		}
		r := Range{Subnet: p}
		if q, err := netip.ParsePrefix(part); err == nil && p.Contains(q.Addr()) {
			r.Range = q
		}
		if a, err := netip.ParseAddr(gateway); err == nil && p.Contains(a) {
			r.Gateway = a
		}
		n.Ranges = []Range{r}
		labels := map[string]string{}
		if key, value, ok := strings.Cut(label, "="); ok {
			labels[key] = value
		}
		dir := t.TempDir()
		path, err := Write(dir, n, labels)
		require.NoError(t, err)
		require.Equal(t, dir, filepath.Dir(path))
		require.True(t, Declared(dir, name))
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		var list struct {
			CNIVersion, Name string
			Plugins          []map[string]any
		}
		require.NoError(t, json.Unmarshal(text, &list))
		require.Len(t, list.Plugins, 1)
		list.Plugins[0]["name"], list.Plugins[0]["cniVersion"] = list.Name, list.CNIVersion
		one, err := json.Marshal(list.Plugins[0])
		require.NoError(t, err)
		_, a, err := read(&skel.CmdArgs{StdinData: one})
		require.NoError(t, err)
		require.Equal(t, n, a.Of)
		require.NoError(t, Remove(dir, name))
		require.False(t, Declared(dir, name))
	})
}
