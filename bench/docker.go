// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/driver/link"
)

// dockerLabel marks what we make in the engine. Nobody else's has it, and we are alone: whatever has it can go.
const dockerLabel = "net.mustang.bench"

const dockerImage = "mustang-bench:pause"

// dockerTimeout is how long the engine may take to make or to remove everything.
const dockerTimeout = time.Minute

// dockerNetworks are Docker's own networks, each measured where one of the modes is that it compares with.
var dockerNetworks = []struct {
	driver string
	modes  []string
}{{"bridge", []string{"veth", "bridge", "netkit"}}, {"macvlan", []string{"macvlan"}}, {"ipvlan", []string{"ipvlan"}}}

func dockerModes() []string {
	var out []string
	for _, n := range dockerNetworks {
		out = append(out, "docker-"+n.driver)
	}
	return out
}

// dockerEngine is an engine with networks and containers of ours.
type dockerEngine struct {
	links link.Host
	http  *http.Client // nil without an engine
	pairs []dockerPair
	files []*os.File // the namespaces of the pairs
	notes []string
}

// startDocker makes a network of each of Docker's drivers with two containers. Without an engine it makes nothing. The
// caller removes what was made, also after an error.
func startDocker(ctx context.Context, socket string, modes []string) (*dockerEngine, error) {
	d := &dockerEngine{}
	if _, err := os.Stat(socket); errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	d.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	ctx, cancel := context.WithTimeout(ctx, dockerTimeout)
	defer cancel()
	if err := d.call(ctx, http.MethodGet, "/_ping", nil, nil, nil); err != nil {
		d.http = nil
		return d, err
	}
	d.remove() // what a bench left that was killed outright
	if err := d.importImage(ctx); err != nil {
		return d, err
	}
	for _, n := range dockerNetworks {
		if !slices.ContainsFunc(n.modes, func(mode string) bool { return slices.Contains(modes, mode) }) {
			continue
		}
		if err := d.connect(ctx, n.driver); err != nil {
			d.notes = append(d.notes, fmt.Sprintf("Docker's %s is left out: %v", n.driver, err))
		}
	}
	return d, nil
}

// inherited are the pairs and their namespaces, which the copy gets after its other descriptors.
func (d *dockerEngine) inherited() ([]dockerPair, []*os.File) { return d.pairs, d.files }

// importImage makes an image of this very program, which is static: nothing is pulled.
func (d *dockerEngine) importImage(ctx context.Context) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("read our own program: %w", err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "mustang", Mode: 0o755, Size: int64(len(self))}); err != nil {
		return err
	}
	if _, err := w.Write(self); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	repo, tag, _ := strings.Cut(dockerImage, ":")
	query := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": {"LABEL " + dockerLabel + "=1"}}
	if err := d.call(ctx, http.MethodPost, "/images/create", query, &archive, nil); err != nil {
		return fmt.Errorf("import an image: %w", err)
	}
	return nil
}

// connect makes a network with two containers.
func (d *dockerEngine) connect(ctx context.Context, driver string) error {
	name := "mustang-bench-" + driver
	options := map[string]string{}
	if driver != "bridge" {
		parent, peer := dockerParent(driver)
		if err := d.links.CreatePrivateParent(owner, parent, peer, mtu); err != nil {
			return err
		}
		options["parent"] = parent
	}
	network := map[string]any{"Name": name, "Driver": driver, "Options": options, "Labels": map[string]string{dockerLabel: "1"}}
	if err := d.post(ctx, "/networks/create", nil, network, nil); err != nil {
		return err
	}
	_, client, err := d.run(ctx, name, "client")
	if err != nil {
		return err
	}
	d.files = append(d.files, client)
	addr, server, err := d.run(ctx, name, "server")
	if err != nil {
		return err
	}
	d.files = append(d.files, server)
	last := netnsFD + len(d.files) - 1
	d.pairs = append(d.pairs, dockerPair{Mode: "docker-" + driver, Server: addr, ClientNetns: last - 1, ServerNetns: last})
	return nil
}

// dockerParent names the private parent of a network.
func dockerParent(driver string) (parent, peer string) { return "mpa" + driver, "mpb" + driver }

// run starts a container that does nothing and opens its network namespace.
func (d *dockerEngine) run(ctx context.Context, network, role string) (netip.Addr, *os.File, error) {
	var made struct{ ID string }
	err := d.post(ctx, "/containers/create", url.Values{"name": {network + "-" + role}}, map[string]any{
		"Image": dockerImage, "Cmd": []string{"/mustang", HelperCommand, helperPause},
		"Labels": map[string]string{dockerLabel: "1"}, "HostConfig": map[string]any{"NetworkMode": network},
	}, &made)
	if err == nil {
		err = d.post(ctx, "/containers/"+made.ID+"/start", nil, nil, nil)
	}
	if err != nil {
		return netip.Addr{}, nil, err
	}
	var is struct {
		State           struct{ Pid int }
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	if err := d.call(ctx, http.MethodGet, "/containers/"+made.ID+"/json", nil, nil, &is); err != nil {
		return netip.Addr{}, nil, err
	}
	addr, err := netip.ParseAddr(is.NetworkSettings.Networks[network].IPAddress)
	if err != nil {
		return addr, nil, fmt.Errorf("the engine gave the container %s no address: %w", made.ID, err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", is.State.Pid))
	return addr, f, err
}

// remove removes everything that has our label, and the parents. It says what is left.
func (d *dockerEngine) remove() {
	for _, f := range d.files {
		f.Close()
	}
	d.pairs, d.files = nil, nil
	if d.http == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerTimeout)
	defer cancel()
	force := url.Values{"force": {"1"}}
	err := errors.Join(
		d.removeAll(ctx, "/containers/json", "/containers/", force),
		d.removeAll(ctx, "/networks", "/networks/", nil),
		d.removeAll(ctx, "/images/json", "/images/", force),
	)
	for _, driver := range []string{"macvlan", "ipvlan"} {
		parent, _ := dockerParent(driver)
		err = errors.Join(err, d.links.Delete(parent, owner))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "mustang: remove what was made in Docker (label %s): %v\n", dockerLabel, err)
	}
}

func (d *dockerEngine) removeAll(ctx context.Context, list, one string, query url.Values) error {
	var found []struct{ ID string }
	ours := url.Values{"all": {"1"}, "filters": {`{"label":["` + dockerLabel + `"]}`}}
	err := d.call(ctx, http.MethodGet, list, ours, nil, &found)
	for _, f := range found {
		err = errors.Join(err, d.call(ctx, http.MethodDelete, one+f.ID, query, nil, nil))
	}
	return err
}

func (d *dockerEngine) post(ctx context.Context, path string, query url.Values, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return d.call(ctx, http.MethodPost, path, query, bytes.NewReader(text), into)
}

// call asks the engine. Paths without a version mean the engine's own, and what we use of it is in all.
func (d *dockerEngine) call(ctx context.Context, method, path string, query url.Values, body io.Reader, into any) error {
	u := url.URL{Scheme: "http", Host: "docker", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the engine: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the engine's answer to %s: %w", path, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var said struct{ Message string }
		if json.Unmarshal(answer, &said) != nil {
			said.Message = resp.Status
		}
		return fmt.Errorf("the engine refuses %s %s: %s", method, path, said.Message)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("read the engine's answer to %s: %w", path, err)
	}
	return nil
}
