"""Makes a codec and a text encoder from nothing, as nano needs them; its language model is trained by finetune."""
