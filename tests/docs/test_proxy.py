"""The proxy's settings in docs/serving.md are ones that nginx takes."""

import shutil
import subprocess

import pytest

from support.pages import ROOT, blocks

TOOLS = {name: shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") for name in ("nginx", "openssl")}


@pytest.mark.skipif(None in TOOLS.values(), reason="needs nginx and openssl: apt-get install nginx openssl")
def test_settings_of_the_proxy_are_understood(tmp_path):
    page = blocks((ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))
    (block,) = [block for block in page if block.language == "nginx"]
    certificate, key = tmp_path / "images.pem", tmp_path / "images.key"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=images", "-keyout", key, "-out", certificate]
    subprocess.run([TOOLS["openssl"], *made], check=True, capture_output=True)
    site = block.code.replace("/etc/ssl/images.pem", str(certificate)).replace("/etc/ssl/images.key", str(key))
    assert str(certificate) in site
    assert str(key) in site
    # A port and folders that any user may have.
    folders = "".join(f"{kind}_temp_path {tmp_path / kind}; " for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    folders += f"client_body_temp_path {tmp_path / 'body'}; access_log off; "
    whole = f"pid {tmp_path / 'pid'};\nevents {{}}\nhttp {{ {folders}\n{site.replace('443 ssl', '18443 ssl')} }}\n"
    (tmp_path / "nginx.conf").write_text(whole)
    command = [TOOLS["nginx"], "-t", "-e", tmp_path / "errors", "-c", tmp_path / "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
