"""What a comparison of methods needs beside itself."""
