// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the answers of testdata anew")

// step is one call of a recorded run: what the engine sends and what it must be answered.
type step struct {
	What   string          `json:"what,omitempty"`
	Call   string          `json:"call"`
	Body   json.RawMessage `json:"body,omitempty"` // none: the engine sends an empty body
	Status int             `json:"status"`
	Answer json.RawMessage `json:"answer"`
	Did    []string        `json:"did,omitempty"` // calls of the driver, the pools and the services
}

func post(p *Plugin, method, body string) (int, string) {
	w := httptest.NewRecorder()
	p.server.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/"+method, strings.NewReader(body)))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func readSteps(t testing.TB, path string) []step {
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	var steps []step
	require.NoError(t, json.Unmarshal(raw, &steps), path)
	return steps
}

// TestRecordedRuns plays whole runs of both engines, and ends with nothing left behind.
func TestRecordedRuns(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f := newFakeHost()
			p := newPlugin(f)
			steps := readSteps(t, path)
			for i, s := range steps {
				status, answer := post(p, s.Call, string(s.Body))
				did := f.take()
				if *update {
					steps[i].Status, steps[i].Answer, steps[i].Did = status, json.RawMessage(answer), did
					continue
				}
				assert.Equal(t, s.Status, status, s.Call)
				assert.JSONEq(t, string(s.Answer), answer, s.Call)
				assert.Equal(t, s.Did, did, s.Call)
			}
			assert.True(t, f.empty(), "something is left behind")
			if *update {
				var out bytes.Buffer
				e := json.NewEncoder(&out)
				e.SetEscapeHTML(false)
				e.SetIndent("", "  ")
				require.NoError(t, e.Encode(steps))
				require.NoError(t, os.WriteFile(path, out.Bytes(), 0o644))
			}
		})
	}
}

// TestRepeatedCalls sends every call of the runs twice: the answer is the same.
func TestRepeatedCalls(t *testing.T) {
	for _, path := range []string{"testdata/engine29.json", "testdata/engine20.json"} {
		f := newFakeHost()
		p := newPlugin(f)
		for _, s := range readSteps(t, path) {
			status, first := post(p, s.Call, string(s.Body))
			again, second := post(p, s.Call, string(s.Body))
			assert.Equal(t, status, again, s.Call)
			if s.Call != "IpamDriver.RequestAddress" { // asks for another address, unless it names one
				assert.Equal(t, first, second, s.Call)
			}
		}
	}
}

func TestBadBodies(t *testing.T) {
	f := newFakeHost()
	p := newPlugin(f)
	noBody := map[string]bool{
		"Plugin.Activate": true, "NetworkDriver.GetCapabilities": true,
		"IpamDriver.GetCapabilities": true, "IpamDriver.GetDefaultAddressSpaces": true,
	}
	for method := range p.calls() {
		if noBody[method] {
			status, _ := post(p, method, "")
			assert.Equal(t, 200, status, method)
			continue
		}
		for body, want := range map[string]string{
			"":                           "empty body",
			" \n":                        "empty body",
			"null":                       "not a JSON object",
			"[]":                         "not a JSON object",
			`{"NetworkID":"n1","Endpoin`: "unexpected end of JSON input",
			`{"NetworkID":"n1"} {}`:      "after top-level value",
			`{"x":"` + strings.Repeat("x", maxBody) + `"}`: "larger than",
		} {
			status, answer := post(p, method, body)
			assert.Equal(t, 500, status, method)
			var e errorResponse
			require.NoError(t, json.Unmarshal([]byte(answer), &e))
			assert.Contains(t, e.Err, want, method)
			assert.Equal(t, e.Err, e.Error)
			assert.Regexp(t, `\(request [0-9a-f]{8}\)$`, e.Err)
		}
	}
	assert.Empty(t, f.take())
}

func TestBadInput(t *testing.T) {
	const program = "NetworkDriver.ProgramExternalConnectivity"
	const net4 = `"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0/24","Gateway":"10.0.0.1/24"}]`
	for _, c := range []struct{ call, body, want string }{
		{"NetworkDriver.CreateNetwork", `{}`, "no NetworkID"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1"}`, "no subnet"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":7}`, "NetworkID"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0"}]}`, `IPv4Data[0].Pool "10.0.0.0"`},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.7/24"}]}`, "want 10.0.0.0/24"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"0.0.0.0/0"}]}`, "`null`"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"fd00::/64"}]}`, "wrong address family"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0/24","Gateway":"10.0.1.1/24"}]}`, "outside"},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0/24","AuxAddresses":{"nas":"x"}}]}`, `AuxAddresses[nas] "x"`},
		{"NetworkDriver.CreateNetwork", `{"NetworkID":"n1","IPv4Data":[{"AddressSpace":"mustang-global","Pool":"10.0.0.0/24"}]}`, "swarm"},
		{"NetworkDriver.CreateNetwork", `{` + net4 + `,"Options":{"com.docker.network.generic":{"mtu":1400}}}`, "option mtu=1400: want a string"},
		{"NetworkDriver.CreateNetwork", `{` + net4 + `,"Options":{"com.docker.network.generic":[1]}}`, "com.docker.network.generic=[1]"},
		{"NetworkDriver.CreateNetwork", `{` + net4 + `,"Options":{"com.docker.network.internal":"yes"}}`, `com.docker.network.internal="yes"`},
		{"NetworkDriver.CreateNetwork", `{` + net4 + `,"Options":{"com.docker.network.enable_ipv6":true}}`, "no IPv6 subnet"},
		{"NetworkDriver.CreateNetwork", `{` + net4 + `,"Options":{"com.docker.network.enable_ipv4":false}}`, "an IPv4 subnet came"},
		{"NetworkDriver.AllocateNetwork", `{"NetworkID":"n1"}`, "swarm"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"n1"}`, "no EndpointID"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e1","Interface":{"MacAddress":"02:42"}}`, `MacAddress "02:42"`},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e1","Interface":{"Address":"fd00::2/64"}}`, "wrong address family"},
		{"NetworkDriver.CreateEndpoint", `{"NetworkID":"n1","EndpointID":"e1","Options":{"mustang.weight":5}}`, "option mustang.weight=5"},
		{"NetworkDriver.Join", `{"NetworkID":"n1","EndpointID":"e1"}`, "no SandboxKey"},
		{"NetworkDriver.ProgramExternalConnectivity", `{"NetworkID":"n1","EndpointID":"e1","Options":{"com.docker.network.portmap":{}}}`, "portmap"},
		{program, ports(`{"Proto":132,"Port":80,"HostPort":80}`), "port 80/sctp: mustang publishes TCP and UDP only"},
		{program, ports(`{"Proto":1,"Port":80}`), "protocol number 1: mustang publishes TCP and UDP only"},
		{program, ports(`{"Port":80}`), "protocol number 0: mustang publishes TCP and UDP only"},
		{program, ports(`{"Proto":300,"Port":80}`), "list of port bindings"},
		{program, ports(`{"Proto":6,"HostPort":80}`), "0/tcp is none, choose 1 to 65535"},
		{program, ports(`{"Proto":6,"Port":65536}`), "list of port bindings"},
		{program, ports(`{"Proto":6,"Port":80,"HostPort":-1}`), "list of port bindings"},
		{program, ports(`{"Proto":17,"Port":80,"HostPort":90,"HostPortEnd":80}`), "host ports 90-80 are no range"},
		{program, ports(`{"Proto":17,"Port":80,"HostPortEnd":80}`), "host ports 0-80 are no range"},
		{program, ports(`{"Proto":6,"Port":80,"HostIP":"here"}`), `host address "here"`},
		{program, ports(`{"Proto":6,"Port":80,"HostIP":"224.0.0.1"}`), `host address "224.0.0.1"`},
		{program, ports(`{"Proto":6,"Port":80,"HostIP":"fe80::1%eth0"}`), `host address "fe80::1%eth0"`},
		{program, ports(`{"Proto":6,"Port":80},{"Proto":6}`), "0/tcp is none"},
		{"IpamDriver.RequestPool", `{"AddressSpace":"other"}`, `AddressSpace "other"`},
		{"IpamDriver.RequestPool", `{"AddressSpace":"mustang-global"}`, "swarm"},
		{"IpamDriver.RequestPool", `{"AddressSpace":"mustang-local","SubPool":"10.0.0.0/25"}`, "without a Pool"},
		{"IpamDriver.RequestPool", `{"AddressSpace":"mustang-local","Pool":"10.0.0.0/24","SubPool":"10.0.1.0/25"}`, "not inside"},
		{"IpamDriver.RequestPool", `{"AddressSpace":"mustang-local","Pool":"10.0.0.0/24","V6":true}`, "wrong address family"},
		{"IpamDriver.RequestPool", `{"AddressSpace":"mustang-local","Options":{"foo":"bar"}}`, "IPAM option foo=bar"},
		{"IpamDriver.RequestAddress", `{"PoolID":"p","Address":"10.0.0.2/24"}`, `Address "10.0.0.2/24"`},
		{"IpamDriver.ReleaseAddress", `{"PoolID":"p"}`, `Address ""`},
	} {
		f := newFakeHost()
		status, answer := post(newPlugin(f), c.call, c.body)
		assert.Equal(t, 500, status, c.body)
		var e errorResponse
		require.NoError(t, json.Unmarshal([]byte(answer), &e))
		assert.Contains(t, e.Err, c.want)
		assert.Empty(t, f.take(), c.body)
	}
}

func TestUnknownMethod(t *testing.T) {
	status, answer := post(newPlugin(newFakeHost()), "NetworkDriver.Levitate", "{}")
	assert.Equal(t, http.StatusNotFound, status)
	assert.Contains(t, answer, "NetworkDriver.Levitate")
}

// TestLateSuccessIsUndone has creates end after their deadline: the engine was told of a failure and
// will never delete what they made.
func TestLateSuccessIsUndone(t *testing.T) {
	for call, body := range map[string]string{
		"NetworkDriver.CreateNetwork": `{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0/24"}]}`,
		"IpamDriver.RequestPool":      `{"AddressSpace":"mustang-local"}`,
	} {
		f := newFakeHost()
		f.gate = make(chan struct{})
		p := newPlugin(f)
		p.deadline = 20 * time.Millisecond
		start := time.Now()
		status, answer := post(p, call, body)
		assert.Equal(t, 500, status)
		assert.Contains(t, answer, "no result within 20ms")
		assert.Less(t, time.Since(start), 2*time.Second)
		close(f.gate)
		assert.Eventually(t, func() bool { return f.count() == 2 }, 5*time.Second, time.Millisecond, "made, and undone")
		assert.True(t, f.empty())
	}
}

func TestEngineHangsUp(t *testing.T) {
	f := newFakeHost()
	f.gate = make(chan struct{})
	p := newPlugin(f)
	ctx, cancel := context.WithCancel(context.Background())
	body := strings.NewReader(`{"NetworkID":"n1","IPv4Data":[{"Pool":"10.0.0.0/24"}]}`)
	r := httptest.NewRequest(http.MethodPost, "/NetworkDriver.CreateNetwork", body).WithContext(ctx)
	w := httptest.NewRecorder()
	cancel()
	p.server.Handler.ServeHTTP(w, r)
	assert.Contains(t, w.Body.String(), "hung up")
	close(f.gate)
	assert.Eventually(t, func() bool { return f.index("delete network n1") == 1 }, 5*time.Second, time.Millisecond)
	assert.True(t, f.empty())
}

func TestPanicIsAnError(t *testing.T) {
	f := newFakeHost()
	f.panics = true
	var log bytes.Buffer
	p := newPlugin(f)
	l := logrus.New()
	l.SetOutput(&log)
	p.log = l
	status, answer := post(p, "NetworkDriver.DeleteNetwork", `{"NetworkID":"n1"}`)
	assert.Equal(t, 500, status)
	assert.Contains(t, answer, "panic: a bug")
	id := answer[strings.Index(answer, "(request ")+len("(request "):][:8]
	assert.Contains(t, log.String(), "request="+id, "the answer's id leads to the log")
}

// TestRevokeIsNoDeath has another network become the gateway of a container that goes on running: only its ports go.
func TestRevokeIsNoDeath(t *testing.T) {
	f := newFakeHost()
	status, _ := post(newPlugin(f), "NetworkDriver.RevokeExternalConnectivity", `{"NetworkID":"n1","EndpointID":"e1"}`)
	assert.Equal(t, 200, status)
	assert.Equal(t, []string{"unpublish e1"}, f.take())
}

// ports is a call that publishes.
func ports(entries string) string {
	return `{"NetworkID":"n1","EndpointID":"e1","Options":{"com.docker.network.portmap":[` + entries + `]}}`
}

// TestPublish tells what -p of either engine means.
func TestPublish(t *testing.T) {
	for what, c := range map[string]struct{ entries, want string }{
		"-p 8080:80":             {`{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}`, "[:8080-8080:80/TCP]"},
		"-p 53:53/udp":           {`{"Proto":17,"IP":"","Port":53,"HostIP":"","HostPort":53,"HostPortEnd":53}`, "[:53-53:53/UDP]"},
		"without the end":        {`{"Proto":6,"Port":80,"HostPort":8080}`, "[:8080-8080:80/TCP]"},
		"-p 80":                  {`{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":0,"HostPortEnd":0}`, "[:0-0:80/TCP]"},
		"-p 8000-8010:80":        {`{"Proto":6,"Port":80,"HostPort":8000,"HostPortEnd":8010}`, "[:8000-8010:80/TCP]"},
		"-p 127.0.0.1:80:80":     {`{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":80}`, "[127.0.0.1:80-80:80/TCP]"},
		"-p 0.0.0.0:80:80":       {`{"Proto":6,"Port":80,"HostIP":"0.0.0.0","HostPort":80}`, "[0.0.0.0:80-80:80/TCP]"},
		"-p [::1]:80:80":         {`{"Proto":6,"Port":80,"HostIP":"::1","HostPort":80}`, "[::1:80-80:80/TCP]"},
		"IPv4 mapped":            {`{"Proto":6,"Port":80,"HostIP":"::ffff:127.0.0.1","HostPort":80}`, "[127.0.0.1:80-80:80/TCP]"},
		"-p 9000-9001:80-81":     {`{"Proto":6,"Port":81,"HostPort":9001},{"Proto":6,"Port":80,"HostPort":9000}`, "[:9001-9001:81/TCP :9000-9000:80/TCP]"},
		"null for no address":    {`{"Proto":6,"IP":null,"Port":80,"HostIP":null,"HostPort":80}`, "[:80-80:80/TCP]"},
		"what a new engine says": {`{"Proto":6,"Port":80,"HostPort":80,"Rootless":false}`, "[:80-80:80/TCP]"},
	} {
		f := newFakeHost()
		status, answer := post(newPlugin(f), "NetworkDriver.ProgramExternalConnectivity", ports(c.entries))
		assert.Equal(t, 200, status, what+": "+answer)
		assert.Equal(t, []string{"publish e1 " + c.want}, f.take(), what)
	}
}

// TestLatePublishIsUndone: the engine was told that the container cannot start.
func TestLatePublishIsUndone(t *testing.T) {
	f := newFakeHost()
	f.gate = make(chan struct{})
	p := newPlugin(f)
	p.deadline = 20 * time.Millisecond
	status, _ := post(p, "NetworkDriver.ProgramExternalConnectivity", ports(`{"Proto":6,"Port":80,"HostPort":80}`))
	assert.Equal(t, 500, status)
	close(f.gate)
	assert.Eventually(t, func() bool { return f.index("unpublish e1") == 1 }, 5*time.Second, time.Millisecond)
	assert.True(t, f.empty())
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "mst") // t.TempDir may be too long for a socket's name
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "plugins", "mustang.sock")

	l, err := Listen(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.ModeSocket|0o600, info.Mode())
	_, err = Listen(path)
	assert.ErrorContains(t, err, "answered by another process")

	p := newPlugin(newFakeHost())
	served := make(chan error, 1)
	go func() { served <- p.Serve(l) }()
	c := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", path)
	}}}
	resp, err := c.Post("http://plugin/Plugin.Activate", contentType, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	resp.Body.Close()
	assert.JSONEq(t, `{"Implements":["NetworkDriver","IpamDriver"]}`, string(body))
	require.NoError(t, p.Close())
	require.NoError(t, <-served)
	_, err = os.Lstat(path)
	assert.ErrorIs(t, err, os.ErrNotExist)

	// What a killed daemon leaves behind.
	stale, err := net.Listen("unix", path)
	require.NoError(t, err)
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	l, err = Listen(path)
	require.NoError(t, err)
	require.NoError(t, l.Close())

	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = Listen(path)
	assert.ErrorContains(t, err, "no socket")
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	assert.Len(t, left, 1, "only the file in the way")
}

// FuzzCalls gives any body to any method: the answer is always JSON, with an error in both keys
// unless the status is 200, and nothing panics.
func FuzzCalls(f *testing.F) {
	for _, path := range []string{"testdata/engine29.json", "testdata/engine20.json"} {
		for _, s := range readSteps(f, path) {
			f.Add(s.Call, []byte(s.Body))
		}
	}
	f.Add("IpamDriver.RequestPool", []byte(`{"AddressSpace":"mustang-local","Pool":"::ffff:10.0.0.0/104","V6":true}`))
	f.Add("NetworkDriver.CreateNetwork", []byte(`{"NetworkID":"n","IPv4Data":null,"Options":null}`))
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		p := newPlugin(newFakeHost())
		if _, ok := p.calls()[method]; !ok {
			return
		}
		status, answer := post(p, method, string(body))
		var e errorResponse
		require.NoError(t, json.Unmarshal([]byte(answer), &e))
		if status == http.StatusOK {
			assert.Empty(t, e.Err+e.Error)
			return
		}
		assert.Equal(t, http.StatusInternalServerError, status)
		assert.NotEmpty(t, e.Err)
		assert.Equal(t, e.Err, e.Error)
		assert.NotContains(t, e.Err, "panic")
	})
}

// TestBeforeItBegins: what an engine asks at its boot is answered at once, and what needs a driver when there is one, or soon with the reason.
func TestBeforeItBegins(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	const pool = `{"AddressSpace":"mustang-local","Pool":"","SubPool":"","Options":{},"V6":false}`

	p := New(log)
	p.patience = 10 * time.Millisecond
	for _, method := range []string{"Plugin.Activate", "NetworkDriver.GetCapabilities", "IpamDriver.GetCapabilities", "IpamDriver.GetDefaultAddressSpaces"} {
		status, _ := post(p, method, "")
		assert.Equal(t, http.StatusOK, status, method)
	}
	status, answer := post(p, "IpamDriver.RequestPool", pool)
	assert.Equal(t, http.StatusInternalServerError, status)
	assert.Contains(t, answer, NotReady+": it is still starting")

	p.patience = time.Minute
	answered := make(chan int)
	go func() {
		status, _ := post(p, "IpamDriver.RequestPool", pool)
		answered <- status
	}()
	f := newFakeHost()
	p.Begin(f, f)
	assert.Equal(t, http.StatusOK, <-answered)
	assert.False(t, p.Refuse(io.ErrUnexpectedEOF), "it has begun")

	p = New(log)
	assert.True(t, p.Refuse(io.ErrUnexpectedEOF))
	status, answer = post(p, "IpamDriver.RequestPool", pool)
	assert.Equal(t, http.StatusInternalServerError, status)
	assert.Contains(t, answer, NotReady+": it could not start: unexpected EOF")
}

func TestAnInterfaceWithoutIPv6(t *testing.T) {
	for sysctls, off := range map[string]bool{
		"net.ipv6.conf.IFNAME.disable_ipv6=1":                                     true,
		"net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.ifname.disable_ipv6=1": true,
		"net.ipv6.conf.IFNAME.disable_ipv6=0":                                     false,
		"net.ipv6.conf.IFNAME.disable_ipv6=1,net.ipv6.conf.IFNAME.disable_ipv6=0": false,
		"net.ipv6.conf.IFNAME.accept_ra=1":                                        false,
		"":                                                                        false,
	} {
		c, err := endpointConfig(createEndpointRequest{NetworkID: "n1", EndpointID: "e1",
			Interface: &endpointInterface{Address: "10.0.0.2/24", AddressIPv6: "fd00::2/64"},
			Options:   options{keySysctls: json.RawMessage(strconv.Quote(sysctls))}})
		require.NoError(t, err)
		assert.Equal(t, off, !c.IPv6.IsValid(), sysctls)
		assert.True(t, c.IPv4.IsValid())
	}
	c, err := endpointConfig(createEndpointRequest{NetworkID: "n1", EndpointID: "e1", Interface: &endpointInterface{AddressIPv6: "fd00::2/64"},
		Options: options{keySysctls: json.RawMessage(`"net.ipv6.conf.IFNAME.disable_ipv6=1"`)}})
	require.NoError(t, err)
	assert.True(t, c.IPv6.IsValid(), "it would have no address at all")
}
