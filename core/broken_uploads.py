"""Multipart uploads that nobody ends: an object store keeps, and bills, parts that no listing shows."""

from datetime import datetime

from core.storage import Storage
from core.uploading import failures_named


def abort_older(storage: Storage, than: datetime) -> int:
    """Give up uploads whose last part came before this; returns how many. None where there are no parts."""
    fs, root = storage.remote
    if storage.root_folder or not hasattr(fs, "list_multipart_uploads"):
        return 0
    bucket, _, below = root.partition("/")
    prefix = f"{below}/" if below else ""
    aborted = 0
    with failures_named(root):
        for upload in fs.list_multipart_uploads(bucket) or []:
            key, upload_id = upload["Key"], upload["UploadId"]
            if not key.startswith(prefix):
                continue
            listed = fs.call_s3("list_parts", Bucket=bucket, Key=key, UploadId=upload_id)
            last = max(
                (part["LastModified"] for part in listed.get("Parts", [])), default=upload["Initiated"]
            )
            if last < than:
                fs.abort_mpu(bucket, key, upload_id)
                aborted += 1
    return aborted
