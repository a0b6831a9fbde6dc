// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver"
)

// parse reads a configuration of the network web, with more keys, as for ADD.
func parse(more, args string) (Attachment, error) {
	text := `{"cniVersion":"1.0.0","name":"web","type":"mustang"` + more + `}`
	_, a, err := read(&skel.CmdArgs{ContainerID: "one", IfName: "eth0", Netns: "/run/netns/a", Args: args, StdinData: []byte(text)})
	return a, err
}

func TestConfigurations(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for _, tt := range []struct {
		name, more, args string
		want             func(*Attachment)
	}{
		{"nothing said", "", "", func(*Attachment) {}},
		{"options", `,"mode":"bridge","mtu":1400,"vip":false,"publish_sources":["10.0.0.0/8","fd00::/8"],"com.docker.network.bridge.name":"br9"`, "",
			func(a *Attachment) {
				a.Of.Options = map[string]string{"mode": "bridge", "mtu": "1400", "vip": "off", "publish_sources": "10.0.0.0/8,fd00::/8", "com.docker.network.bridge.name": "br9"}
			}},
		{"subnets", `,"ipv6":true,"internal":true,"ipam":{"ranges":[[{"subnet":"10.5.0.0/24","gateway":"10.5.0.9","range":"10.5.0.128/25"}]]}`, "",
			func(a *Attachment) {
				a.Of.IPv6, a.Of.Internal = true, true
				a.Of.Ranges = []Range{{Subnet: prefix("10.5.0.0/24"), Range: prefix("10.5.0.128/25"), Gateway: addr("10.5.0.9")}}
			}},
		{"ranges from and to", `,"ipam":{"ranges":[[{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.9","rangeEnd":"10.5.0.20"}],[{"subnet":"fd05::/64","rangeStart":"fd05::9","gateway":"fd05::2"}]]}`, "",
			func(a *Attachment) {
				a.Of.Ranges = []Range{
					{Subnet: prefix("10.5.0.0/24"), First: addr("10.5.0.9"), Last: addr("10.5.0.20"), Gateway: addr("10.5.0.1")},
					{Subnet: prefix("fd05::/64"), First: addr("fd05::9"), Gateway: addr("fd05::2")},
				}
			}},
		{"another IPAM", `,"ipam":{"type":"host-local","subnet":"10.5.0.0/24","rangeStart":"10.5.0.7"}`, "", func(a *Attachment) {
			a.Of.Delegated = true
			a.Of.Ranges = []Range{{Subnet: netip.MustParsePrefix("10.5.0.0/24"), Gateway: netip.MustParseAddr("10.5.0.1")}}
		}},
		{"ranges of the runtime", `,"runtimeConfig":{"ipRanges":[[{"subnet":"10.6.0.0/24"},{"subnet":"10.7.0.0/24","rangeEnd":"10.7.0.9"}]]}`, "",
			func(a *Attachment) {
				a.Of.Ranges = []Range{{Subnet: prefix("10.6.0.0/24")}, {Subnet: prefix("10.7.0.0/24"), Last: addr("10.7.0.9"), Gateway: addr("10.7.0.1")}}
			}},
		{"ports as nerdctl writes them", `,"runtimeConfig":{"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"},{"HostPort":53,"ContainerPort":53,"Protocol":"udp","HostIP":"127.0.0.1"}]}`, "",
			func(a *Attachment) {
				a.Ports = []driver.PortBinding{
					{Protocol: bpf.ProtocolTCP, Port: 80, HostPort: 8080, HostPortEnd: 8080},
					{Protocol: bpf.ProtocolUDP, Port: 53, HostPort: 53, HostPortEnd: 53, Host: addr("127.0.0.1")},
				}
			}},
		{"ports as the specification writes them", `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"TCP"}]}`, "",
			func(a *Attachment) {
				a.Ports = []driver.PortBinding{{Protocol: bpf.ProtocolTCP, Port: 80, HostPort: 8080, HostPortEnd: 8080}}
			}},
		{"addresses and a MAC", `,"runtimeConfig":{"ips":["10.5.0.7/24","fd00::7"],"mac":"02:42:0A:05:00:07"}`, "",
			func(a *Attachment) {
				a.IPs, a.MAC = []netip.Addr{addr("10.5.0.7"), addr("fd00::7")}, "02:42:0a:05:00:07"
			}},
		{"as CNI_ARGS", "", "IgnoreUnknown=1;IP=10.5.0.7;MAC=02:42:0a:05:00:07;NERDCTL_CNI_DHCP_HOSTNAME=one",
			func(a *Attachment) { a.IPs, a.MAC = []netip.Addr{addr("10.5.0.7")}, "02:42:0a:05:00:07" }},
		{"aliases", `,"runtimeConfig":{"aliases":["db","store"]}`, "", func(a *Attachment) { a.Aliases = []string{"db", "store"} }},
		{"aliases by network", `,"runtimeConfig":{"aliases":{"web":["db"],"other":["x"]}}`, "", func(a *Attachment) { a.Aliases = []string{"db"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := Attachment{Key: Key{"web", Attachee{"one", "eth0"}}, Of: Network{Name: "web"}, Sandbox: "/run/netns/a"}
			tt.want(&want)
			got, err := parse(tt.more, tt.args)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestBadConfigurations(t *testing.T) {
	for _, tt := range []struct {
		more, args string
		code       uint
		wants      string
	}{
		{`,"mod":"bridge"`, "", types.ErrUnsupportedField, `"mod": bridge`},
		{`,"mtu":[1400]`, "", types.ErrInvalidNetworkConfig, "mtu"},
		{`,"ipam":{"ranges":[[{"subnet":"10.5.0.7/24"}]]}`, "", types.ErrInvalidNetworkConfig, "without host bits"},
		{`,"ipam":{"ranges":[[{"subnet":"10.5.0.0/24","rangeStart":"ten"}]]}`, "", types.ErrInvalidNetworkConfig, `"ten" is no address: give one of it as rangeStart and rangeEnd`},
		{`,"ipam":{"subnet":"10.5.0.0/24","ranges":[[{"subnet":"10.5.0.0/24","rangeStart":"10.5.0.9"}]]}`, "", types.ErrInvalidNetworkConfig, "subnet 10.5.0.0/24 has several ranges: leave one of them"},
		{`,"ipam":{}`, "", types.ErrInvalidNetworkConfig, `leave "ipam" away, and mustang chooses them`},
		{`,"ipam":[]`, "", types.ErrDecodingFailure, "ipam"},
		{`,"runtimeConfig":{"ips":["ten"]}`, "", types.ErrInvalidNetworkConfig, `"ten"`},
		{`,"runtimeConfig":{"mac":"02:42"}`, "", types.ErrInvalidNetworkConfig, `"02:42"`},
		{`,"runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]}`, "", types.ErrInvalidNetworkConfig, "0 is no port"},
		{`,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"sctp"}]}`, "", types.ErrInvalidNetworkConfig, "TCP and UDP only"},
		{`,"runtimeConfig":{"aliases":"db"}`, "", types.ErrInvalidNetworkConfig, "want a list of names"},
		{"", "IP=10.5.0.7;COLOUR=red", types.ErrInvalidEnvironmentVariables, "COLOUR"},
	} {
		_, err := parse(tt.more, tt.args)
		require.Error(t, err, tt.more)
		got := code(err)
		var coded *types.Error
		text := err.Error()
		if errors.As(err, &coded) {
			got, text = coded.Code, coded.Msg+coded.Details
		}
		require.Equal(t, tt.code, got, tt.more)
		require.Contains(t, text, tt.wants)
	}
}

func TestWhatDeleteReadsOfABadConfiguration(t *testing.T) {
	for _, text := range []string{`{"name":"web","mod":"bridge"}`, `{"name":"web","ipam":[],"runtimeConfig":7}`} {
		require.Equal(t, "web", lenient(&skel.CmdArgs{StdinData: []byte(text)}).Name)
	}
	c := lenient(&skel.CmdArgs{StdinData: []byte(`{"name":"web","internal":"true","ipam":{"type":"host-local"}}`)})
	require.Equal(t, "host-local", c.IPAM.Type, "whose address goes back, whatever is wrong beside it")
}

func TestFilesOfNetworks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	n := Network{
		Name: "web", Options: map[string]string{"mode": "macvlan", "parent": "eth0"}, IPv6: true, Internal: true,
		Ranges: []Range{
			{Subnet: netip.MustParsePrefix("10.5.0.0/24"), Range: netip.MustParsePrefix("10.5.0.128/25"), Gateway: netip.MustParseAddr("10.5.0.1")},
			{Subnet: netip.MustParsePrefix("fd00:5::/64")},
		},
	}
	require.False(t, Declared(dir, "web"))
	path, err := Write(dir, n, map[string]string{"a": "b"})
	require.NoError(t, err)
	require.True(t, Declared(dir, "web"))
	_, err = Write(dir, n, nil)
	require.ErrorContains(t, err, "has one of this name")

	// what runtimes hand over of it means the same network
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var list struct {
		Name, NerdctlID string
		NerdctlLabels   map[string]string
		Plugins         []map[string]any
	}
	require.NoError(t, json.Unmarshal(text, &list))
	require.Equal(t, NetworkID("web"), list.NerdctlID)
	require.Equal(t, map[string]string{"a": "b"}, list.NerdctlLabels)
	list.Plugins[0]["name"], list.Plugins[0]["cniVersion"] = list.Name, "1.0.0"
	one, err := json.Marshal(list.Plugins[0])
	require.NoError(t, err)
	_, a, err := read(&skel.CmdArgs{StdinData: one})
	require.NoError(t, err)
	require.Equal(t, n, a.Of)

	// nerdctl has a directory for each namespace of containerd, and others have networks too
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "default"), 0o755))
	other := filepath.Join(dir, "default", "other.conflist")
	require.NoError(t, os.WriteFile(other, []byte(`{"name":"other","plugins":[{"type":"bridge"}]}`), 0o600))
	require.True(t, Declared(dir, "other"))
	require.ErrorContains(t, Remove(dir, "other"), "no plugin of mustang's")
	for range 2 {
		require.NoError(t, Remove(dir, "web"))
		require.False(t, Declared(dir, "web"))
	}
	require.Error(t, CheckName("a/b"))
	require.ErrorContains(t, CheckName("host"), "means no network of ours to nerdctl and Docker")
	require.NoError(t, CheckName("a_b.c-1"))
}

func TestHostsOfNerdctl(t *testing.T) {
	file := filepath.Join(t.TempDir(), "etchosts", "default", "one", "hosts")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	vips := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	require.NoError(t, hosts{block: []byte("x"), vips: vips}.write(file)) // nerdctl has made none
	theirs := "127.0.0.1 localhost\n# <nerdctl>\n10.4.0.9\tweb web.n me\n10.4.0.2\tdb shop-db-1\n10.4.0.3\tdb\n# </nerdctl>\n"
	without := "127.0.0.1 localhost\n# <nerdctl>\n10.4.0.9\tweb web.n me\n10.4.0.2\tshop-db-1\n# </nerdctl>\n"
	own := map[netip.Addr]bool{netip.MustParseAddr("10.4.0.9"): true}
	for _, tt := range []struct{ block, name, want string }{
		{"10.96.1.7\tweb web.n\n", "web", theirs}, {"10.96.1.7\tweb web.n\n", "web", theirs}, {"", "", theirs},
		{"10.96.1.8\tdb db.n\n", "db", without}, {"10.96.1.8\tdb db.n\n", "db", without}, {"", "", without},
	} {
		if tt.want == theirs {
			require.NoError(t, os.WriteFile(file, []byte(theirs), 0o600)) // as nerdctl does after every change
		}
		h := hosts{block: []byte(tt.block), names: map[string]bool{tt.name: true}, vips: vips, own: own}
		require.NoError(t, h.write(file))
		got, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, tt.block+tt.want, string(got))
	}

	// its container may write to it what it likes
	require.NoError(t, os.Truncate(file, 1<<40))
	require.ErrorContains(t, hosts{block: []byte("10.96.1.7 web\n"), vips: vips}.write(file), "has more than 1048576 bytes")
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.EqualValues(t, 1<<40, info.Size())

	held, err := os.Open(filepath.Dir(filepath.Dir(file)))
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, unix.Flock(int(held.Fd()), unix.LOCK_EX)) // by a nerdctl that hangs
	require.ErrorIs(t, hosts{vips: vips}.write(file), errHeld)
	a := &attachment{Labels: map[string]string{labelState: "/var/lib/nerdctl/1935db59/containers/default/one"}}
	require.Equal(t, "/var/lib/nerdctl/1935db59/etchosts/default/one/hosts", a.hostsFile())
}

// A call outlives the daemon that has it: the next one does the work again. An ADD, of which nobody knows how far it came, begins anew.
func TestADaemonThatEndsUnderACall(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	w.add("one", w.sandbox("/run/netns/a"))
	config := []byte(`{"cniVersion":"1.1.0","name":"web","type":"mustang"}`)
	for _, command := range []string{"STATUS", "GC", "DEL"} {
		w.deaths = 2
		require.Equal(t, called{}, w.call(t, command, "", "", config), command)
		require.Zero(t, w.deaths)
	}
	require.Empty(t, w.endpoints)

	began := 0
	add := func(_ context.Context, h Host, _ *skel.CmdArgs) error { // as far as it can be had without a namespace
		began++
		_, err := h.Add(ctx, ask("one", "/run/netns/a"))
		return err
	}
	again := func(ctx context.Context, h Host, args *skel.CmdArgs) error {
		return errors.Join(deleteFirst(ctx, h, args), add(ctx, h, args))
	}
	w.deaths = 2
	require.NoError(t, Plugin{Open: w.open}.with(ctx, &skel.CmdArgs{ContainerID: "one", IfName: "eth0", Netns: "/run/netns/a", StdinData: config}, add, again))
	require.Equal(t, 3, began)
	require.Len(t, w.endpoints, 1)
}

// The examples are what a runtime can hand over, and what nerdctl takes for its own.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../plugin-config/cni/*.conflist")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var list struct {
			CNIVersion, Name, NerdctlID string
			Plugins                     []map[string]any
		}
		require.NoError(t, json.Unmarshal(text, &list), file)
		require.Equal(t, NetworkID(list.Name), list.NerdctlID, file)
		list.Plugins[0]["name"], list.Plugins[0]["cniVersion"] = list.Name, list.CNIVersion
		one, err := json.Marshal(list.Plugins[0])
		require.NoError(t, err)
		_, a, err := read(&skel.CmdArgs{StdinData: one})
		require.NoError(t, err, file)
		_, err = driver.ParseOptions(a.Of.Options)
		require.NoError(t, err, file)
	}
}

func TestNothingIsCollectedByABadConfiguration(t *testing.T) {
	w := newWorld(t)
	w.declared["web"] = true
	w.add("one", w.sandbox("/run/netns/a"))
	before := w.lines()
	for _, more := range []string{`"ipam":[]`, `"runtimeConfig":7`, `"cni.dev/valid-attachments":{}`} {
		text := `{"cniVersion":"1.1.0","name":"web","cni.dev/attachments":[{"containerID":"one","ifname":"eth0"}],` + more + `}`
		require.Error(t, collect(ctx, w.Manager, &skel.CmdArgs{StdinData: []byte(text)}), more)
		require.Equal(t, before, w.lines())
	}
}
